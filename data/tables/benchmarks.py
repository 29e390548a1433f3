"""Prompt sets of published benchmarks, from the files that their authors publish; none of them is shipped here.

A benchmark is a list of entries: a JSON file with a list of objects, a CSV file, or a text file with a prompt a line.
Each distinct pair of text and category becomes a row of a prompt set.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.prompts import Prompt
from data.tables.read import read_table
from data.written import read_written

FILE = "file"  # stands for the name of an entry's file, as a category


class Benchmark(NamedTuple):
    """Where a benchmark's prompts are, and which keys of an entry are what."""

    title: str
    page: str
    files: str  # which files of the page
    licence: str  # as the page states it
    text: str  # key of the prompt
    category: str  # key of the category, or FILE
    kept: tuple[str, ...] | None  # keys that become further columns; None: all


BENCHMARKS = {
    "vbench": Benchmark(
        "VBench", "https://github.com/Vchitect/VBench", "vbench/VBench_full_info.json", "Apache-2.0",
        "prompt_en", "dimension", None,
    ),
    "vbench2": Benchmark(
        "VBench-2.0", "https://github.com/Vchitect/VBench/tree/master/VBench-2.0", "vbench2/VBench2_full_info.json",
        "Apache-2.0", "prompt_en", "dimension", None,
    ),
    "videophy": Benchmark(
        "VideoPhy", "https://huggingface.co/datasets/videophysics/videophy_test_public", "its CSV", "MIT",
        "caption", "states_of_matter", ("complexity",),
    ),
    "videophy2": Benchmark(
        "VideoPhy-2", "https://huggingface.co/datasets/videophysics/videophy2_test", "its CSV", "MIT",
        "caption", "category", ("action", "is_hard", "metadata_rules", "upsampled_caption"),
    ),
    "phygenbench": Benchmark(
        "PhyGenBench", "https://github.com/OpenGVLab/PhyGenBench", "PhyGenBench/prompts.json", "none is stated",
        "caption", "main_category", None,
    ),
    "t2v-compbench": Benchmark(
        "T2V-CompBench", "https://github.com/KaiyueSun98/T2V-CompBench", "meta_data/*.json or prompts/*.txt",
        "none is stated", "prompt", FILE, None,
    ),
}  # fmt: skip


class Entry(NamedTuple):
    """An entry of a benchmark's file."""

    where: str  # for errors
    cells: Mapping[str, Any]  # by key; a line of a text file has the benchmark's text key alone


def read_benchmark(name: str, paths: Sequence[Path], split: str) -> list[Prompt]:
    """The prompts of a benchmark in the order of its files, all of one split; prompt_ids count them.

    Raises ValueError naming the file and the entry where it is not such a file.
    """
    benchmark, found = BENCHMARKS[name], dict[tuple[str, str], tuple[tuple[str, str], ...]]()
    for path in paths:
        for entry in _entries(path, benchmark):
            text = " ".join(_cell(entry, benchmark.text, benchmark).splitlines()).strip()
            category = path.stem if benchmark.category == FILE else _cell(entry, benchmark.category, benchmark)
            if not text or not category:
                raise ValueError(f"{entry.where}: {benchmark.category if text else benchmark.text} is empty")
            found.setdefault((text, category), tuple(_others(entry, benchmark)))
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: no prompts")
    return [
        Prompt(f"{name}-{number:04d}", text, category, split, None, None, others)
        for number, ((text, category), others) in enumerate(found.items(), 1)
    ]


def categories(prompts: Sequence[Prompt]) -> Counter[str]:
    """Numbers of prompts by category."""
    return Counter(prompt.category for prompt in prompts)


def _entries(path: Path, benchmark: Benchmark) -> Iterator[Entry]:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        rows = read_table(path, (benchmark.text,), ()).rows
        yield from (Entry(f"{path}, row {row.number}", row.cells) for row in rows)
        return
    if suffix not in (".json", ".txt"):
        raise ValueError(f"{path}: wanted a .json, .csv or .txt file: {benchmark.files} of {benchmark.page}")
    content = read_written(path)
    try:
        document = json.loads(content) if suffix == ".json" else content.splitlines()
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not read: {error}") from error
    if suffix == ".txt":
        lines = enumerate(document, 1)
        yield from (Entry(f"{path}, line {number}", {benchmark.text: line}) for number, line in lines if line.strip())
        return
    if not isinstance(document, list) or not all(isinstance(one, Mapping) for one in document):
        raise ValueError(f"{path}: wanted a list of objects, as in {benchmark.files} of {benchmark.page}")
    yield from (Entry(f"{path}, entry {number}", one) for number, one in enumerate(document, 1))


def _cell(entry: Entry, key: str, benchmark: Benchmark) -> str:
    """A text of an entry; of a list, the first."""
    if key not in entry.cells:
        others = [name for name, one in BENCHMARKS.items() if {one.text, one.category} - {FILE} <= entry.cells.keys()]
        hint = f"; its keys are those of {' and '.join(others)}" if others else ""
        raise ValueError(
            f"{entry.where}: no {key!r} among {', '.join(map(str, entry.cells))}; wanted is {benchmark.files} of "
            f"{benchmark.page}{hint}"
        )
    value = entry.cells[key]
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str):
        raise ValueError(f"{entry.where}: {key} is {value!r}, expected a text")
    return value.strip()


def _others(entry: Entry, benchmark: Benchmark) -> Iterator[tuple[str, str]]:
    """The further columns of an entry: texts as they are, the rest as JSON."""
    for key, value in entry.cells.items():
        if key != benchmark.text and (benchmark.kept is None or key in benchmark.kept):
            yield str(key), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
