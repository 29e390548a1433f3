"""Prompt sets: CSV files with the columns prompt_id, prompt, category, split, and optionally image and reference.

The shipped sets are in `configs/prompt_sets/`. data/tables/read.py reads and writes the tables.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.tables.read import TableRow, read_table, write_table

logger = logging.getLogger(__name__)

REQUIRED = ("prompt_id", "prompt", "category", "split")
OPTIONAL = ("image", "reference")
SPLITS = ("train", "test")
EXTENDED = "prompts.csv"  # in the folder of a policy whose generator gets another text than the prompt
PLACE = "{prompt}"  # in a template, for the text
NAMED = 5  # ids or texts in a warning


@dataclass(frozen=True)
class Prompt:
    """One row of a prompt set. `image` and `reference` are paths, relative to the folder of the CSV."""

    prompt_id: str  # letters, digits, dot, dash, underscore: it becomes part of file names
    prompt: str
    category: str
    split: str  # train or test
    image: str | None  # the first frame, for generators that start from one
    reference: str | None  # a real clip of the same prompt
    others: tuple[tuple[str, str], ...] = ()  # name and cell of each further column: kept, and used by nothing


def load_prompts(path: Path) -> list[Prompt]:
    """Prompts in the order of the file; logs the `remarks` on them as warnings.

    Names of columns may have other case, spaces around them, and spaces or dashes for underscores. Columns without a
    name are ignored where they are empty. Raises ValueError naming the file and the row as a spreadsheet counts it (the
    header is row 1).
    """
    path = Path(path)
    table = read_table(path, REQUIRED, OPTIONAL)
    prompts: list[Prompt] = []
    row_of: dict[str, int] = {}
    for row in table.rows:
        where = f"{path}, row {row.number}"
        _check_row(where, row.cells)
        prompt = _prompt(path, row)
        if (first := row_of.get(prompt.prompt_id)) is not None:
            raise ValueError(f"{where}: prompt_id {prompt.prompt_id!r} already stands in row {first}")
        _check_files(where, prompt)
        row_of[prompt.prompt_id] = row.number
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path}: no prompts; wanted at least one row below the header")
    for remark in (*table.remarks, *remarks(prompts)):
        logger.warning("%s: %s", path, remark)
    return prompts


def select(prompts: Sequence[Prompt], split: str, count: int | None = None) -> list[Prompt]:
    """The prompts of "train", "test" or "all"; with a count, that many, evenly spread over them in their order.

    Raises ValueError when there are none, and when there are fewer than the count.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split {split!r}; wanted one of train, test, all")
    chosen = [prompt for prompt in prompts if split in (prompt.split, "all")]
    if not chosen:
        raise ValueError(f"no prompts in split {split!r} among {len(prompts)}")
    if count is None:
        return chosen
    if count > len(chosen):
        raise ValueError(f"{count} prompts are wanted, split {split!r} has {len(chosen)}")
    return [chosen[place * len(chosen) // count] for place in range(count)]


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write a prompt set with all its columns, paths of files as they are from the folder of `path`."""
    used = [name for name in OPTIONAL if any(getattr(prompt, name) for prompt in prompts)]
    others = dict.fromkeys(name for prompt in prompts for name, _ in prompt.others)
    rows = [
        [
            *(getattr(prompt, name) for name in REQUIRED),
            *(_from(path.parent, getattr(prompt, name)) for name in used),
            *(dict(prompt.others).get(name, "") for name in others),
        ]
        for prompt in prompts
    ]
    write_table(path, [*REQUIRED, *used, *others], rows)


def extended(prompts: Sequence[Prompt], rewritten: Sequence[Prompt], template: str) -> list[Prompt]:
    """The prompts, each with the template around the text that has its prompt_id in `rewritten`, without their files.

    They are texts for a policy's folder; the generator takes the image from the prompt set, by prompt_id.
    Raises ValueError for a template without {prompt}, and naming the prompts that `rewritten` lacks.
    """
    if PLACE not in template:
        raise ValueError(f"template is {template!r}, expected a text with {PLACE} in it")
    texts = {prompt.prompt_id: prompt.prompt for prompt in rewritten}
    if missing := [prompt.prompt_id for prompt in prompts if prompt.prompt_id not in texts]:
        raise ValueError(f"{len(missing)} of {len(prompts)} prompts have no text to extend: {', '.join(missing[:3])}")
    return [
        replace(prompt, prompt=template.replace(PLACE, texts[prompt.prompt_id]), image=None, reference=None)
        for prompt in prompts
    ]


def texts_for(policy: Path, prompts: Sequence[Prompt]) -> dict[str, str] | None:
    """The texts that a policy's generator gets in place of the prompts, by prompt_id; None where it gets the prompts.

    Raises ValueError where the policy's folder has texts of other prompts.
    """
    if not (policy / EXTENDED).is_file():
        return None
    texts = {one.prompt_id: one.prompt for one in load_prompts(policy / EXTENDED)}
    if missing := [prompt.prompt_id for prompt in prompts if prompt.prompt_id not in texts]:
        raise ValueError(f"{policy / EXTENDED}: no text for {', '.join(missing[:3])}; run stage extend again")
    return texts


def leaks(prompts: Sequence[Prompt]) -> list[str]:
    """Texts that stand in both train and test, sorted; with first frames, those that do with the same image.

    A text with another image is another task, and so is an image with another text.
    """
    train, test = ({(one.prompt, one.image) for one in prompts if one.split == split} for split in SPLITS)
    return sorted({text for text, _ in train & test})


def remarks(prompts: Sequence[Prompt]) -> list[str]:
    """What is no error in a prompt set and may be a mistake, a sentence each; empty for a clean set."""
    leaked = leaks(prompts)
    repeated = _equal(prompts, lambda prompt: (prompt.split, prompt.prompt, prompt.image))
    alike = _equal(prompts, lambda prompt: prompt.prompt_id.casefold())
    quoted = [prompt.prompt_id for prompt in prompts if re.fullmatch(r"[“„«].*[”“»]", prompt.prompt)]
    damaged = [prompt.prompt_id for prompt in prompts if "\ufffd" in prompt.prompt]
    found = {
        "texts stand in both train and test, so the test split is not held out for them": leaked,
        "texts stand in several rows of one split, and count as often": repeated,
        "prompt_ids differ only in case, so that file names collide on macOS and Windows": alike,
        "prompts stand in curly quotes, which are taken for a part of the text": quoted,
        "prompts hold the sign � in place of a letter that an earlier program could not read": damaged,
    }
    said = [f"{sentence} ({len(names)}): {_listed(names)}" for sentence, names in found.items() if names]
    without = [prompt.prompt_id for prompt in prompts if not prompt.image]
    if 0 < len(without) < len(prompts):
        images = f"{len(prompts) - len(without)} prompts have an image and {len(without)} have none"
        said.append(f"{images}, and one clip set takes prompts of one sort alone: {_listed(without)}")
    if all(prompt.split != "train" for prompt in prompts):
        said.append("no row has split train, so a round that draws from train (generate.split) has no prompts")
    return said


def _equal(prompts: Sequence[Prompt], key: Callable[[Prompt], object]) -> list[str]:
    """For each key that several prompts share, their ids with an = between them."""
    ids: dict[object, list[str]] = {}
    for prompt in prompts:
        ids.setdefault(key(prompt), []).append(prompt.prompt_id)
    return [" = ".join(names) for names in ids.values() if len(names) > 1]


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return "; ".join(names[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def _check_row(where: str, cells: Mapping[str, str]) -> None:
    for name in REQUIRED:
        if not cells[name]:
            raise ValueError(f"{where}: {name} is empty")
        if len(cells[name].splitlines()) > 1:
            raise ValueError(f"{where}: {name} has a line break in it: {cells[name]!r}; write it on one line")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cells["prompt_id"]):
        raise ValueError(f"{where}: prompt_id {cells['prompt_id']!r}; wanted letters, digits, dot, dash, underscore")
    if cells["split"] not in SPLITS:
        raise ValueError(f"{where}: split {cells['split']!r}; wanted {' or '.join(SPLITS)}")


def _check_files(where: str, prompt: Prompt) -> None:
    """Both files are there, and the image begins as one; its pixels are read by data.first_frames."""
    for file in (prompt.image, prompt.reference):
        if file and not Path(file).is_file():
            raise ValueError(f"{where}: no file {file}; paths are taken from the folder of the CSV")
    if prompt.image:
        from data.first_frames import check_image  # which imports this module, and Pillow

        try:
            check_image(Path(prompt.image))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _prompt(path: Path, row: TableRow) -> Prompt:
    cells = row.cells
    image, reference = (str(path.parent / cells[name]) if cells.get(name) else None for name in OPTIONAL)
    others = tuple((name, cell) for name, cell in cells.items() if name not in REQUIRED + OPTIONAL)
    return Prompt(cells["prompt_id"], cells["prompt"], cells["category"], cells["split"], image, reference, others)


def _from(folder: Path, file: str | None) -> str:
    return os.path.relpath(file, folder) if file else ""
