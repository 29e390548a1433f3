"""Prompt sets: CSV files with the columns prompt_id, prompt, category, split, and optionally image and reference.

The shipped sets are in `configs/prompt_sets/`.
"""

import csv
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.manifest import atomically

logger = logging.getLogger(__name__)

REQUIRED = ("prompt_id", "prompt", "category", "split")
OPTIONAL = ("image", "reference")
SPLITS = ("train", "test")
EXTENDED = "prompts.csv"  # in the folder of a policy whose generator gets another text than the prompt
PLACE = "{prompt}"  # in a template, for the text


@dataclass(frozen=True)
class Prompt:
    """One row of a prompt set. `image` and `reference` are paths, relative to the folder of the CSV."""

    prompt_id: str  # letters, digits, dot, dash, underscore: it becomes part of file names
    prompt: str
    category: str
    split: str  # train or test
    image: str | None  # the first frame, for generators that start from one
    reference: str | None  # a real clip of the same prompt


def load_prompts(path: Path) -> list[Prompt]:
    """Prompts in the order of the file; warns of texts that stand in both splits.

    Raises ValueError naming the file and the row as a spreadsheet counts it (the header is row 1).
    """
    path = Path(path)
    with path.open(newline="", encoding="utf-8-sig") as file:  # -sig: spreadsheets put a mark before the header
        reader = csv.DictReader(file, strict=True)
        _check_header(path, reader.fieldnames or [])
        try:
            prompts = _prompts(path, reader)
        except csv.Error as error:
            raise ValueError(f"{path}, row {reader.line_num}: not CSV ({error})") from error
    if not prompts:
        raise ValueError(f"{path}: no prompts; wanted at least one row below the header")
    leaked = leaks(prompts)
    if leaked:
        message = "%s: %d texts stand in both train and test, so the test split is not held out for them: %s"
        logger.warning(message, path, len(leaked), "; ".join(leaked))
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
    """Write a prompt set without the optional columns."""
    with atomically(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(REQUIRED)
        writer.writerows([getattr(prompt, name) for name in REQUIRED] for prompt in prompts)


def extended(prompts: Sequence[Prompt], rewritten: Sequence[Prompt], template: str) -> list[Prompt]:
    """The prompts, each with the template around the text that has its prompt_id in `rewritten`.

    Raises ValueError for a template without {prompt}, and naming the prompts that `rewritten` lacks.
    """
    if PLACE not in template:
        raise ValueError(f"template is {template!r}, expected a text with {PLACE} in it")
    texts = {prompt.prompt_id: prompt.prompt for prompt in rewritten}
    if missing := [prompt.prompt_id for prompt in prompts if prompt.prompt_id not in texts]:
        raise ValueError(f"{len(missing)} of {len(prompts)} prompts have no text to extend: {', '.join(missing[:3])}")
    return [replace(prompt, prompt=template.replace(PLACE, texts[prompt.prompt_id])) for prompt in prompts]


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
    """Texts that stand in both train and test, sorted."""
    train, test = ({prompt.prompt for prompt in prompts if prompt.split == split} for split in SPLITS)
    return sorted(train & test)


def _check_header(path: Path, columns: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in columns]
    unknown = [name for name in columns if name not in REQUIRED + OPTIONAL]
    wanted = f"wanted {', '.join(REQUIRED)} and optionally {', '.join(OPTIONAL)}"
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)} in the header {', '.join(columns)!r}; {wanted}")
    if unknown:
        raise ValueError(f"{path}: unknown column {', '.join(unknown)}; {wanted}")


def _prompts(path: Path, reader: "csv.DictReader[str]") -> list[Prompt]:
    prompts: list[Prompt] = []
    row_of: dict[str, int] = {}
    for cells in reader:
        row, where = reader.line_num, f"{path}, row {reader.line_num}"
        _check_row(where, cells)
        prompt = _prompt(path, cells)
        if (first := row_of.get(prompt.prompt_id)) is not None:
            raise ValueError(f"{where}: prompt_id {prompt.prompt_id!r} already stands in row {first}")
        for file in (prompt.image, prompt.reference):
            if file and not Path(file).is_file():
                raise ValueError(f"{where}: no file {file}; paths are taken from the folder of the CSV")
        row_of[prompt.prompt_id] = row
        prompts.append(prompt)
    return prompts


def _check_row(where: str, cells: Mapping[Any, Any]) -> None:
    if None in cells:
        raise ValueError(f"{where}: more cells than columns; a prompt with a comma in it must stand in quotes")
    if None in cells.values():
        raise ValueError(f"{where}: fewer cells than columns; empty ones still need their comma")
    for name in REQUIRED:
        if not cells[name].strip():
            raise ValueError(f"{where}: {name} is empty")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cells["prompt_id"].strip()):
        raise ValueError(f"{where}: prompt_id {cells['prompt_id']!r}; wanted letters, digits, dot, dash, underscore")
    if cells["split"].strip() not in SPLITS:
        raise ValueError(f"{where}: split {cells['split']!r}; wanted {' or '.join(SPLITS)}")


def _prompt(path: Path, cells: dict[str, str]) -> Prompt:
    text = {name: cell.strip() for name, cell in cells.items()}
    image, reference = (str(path.parent / text[name]) if text.get(name) else None for name in OPTIONAL)
    return Prompt(text["prompt_id"], text["prompt"], text["category"], text["split"], image, reference)
