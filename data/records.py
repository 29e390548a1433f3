"""The rows that stages hand each other, each a frozen dataclass with the Arrow schema it is stored in.

A field annotated `X | None` may be null; null always means "not known", never 0 and never a tie.
"""

import numbers
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Sample:
    """One clip of a clip set. `file_name` is relative to the folder of the metadata table."""

    sample_id: str
    prompt_id: str
    prompt: str
    category: str
    split: str  # train or test
    policy: str
    seed: int  # the clip's own noise seed, not the set's
    num_frames: int
    fps: float  # frames per second
    height: int  # pixels
    width: int  # pixels
    file_name: str


@dataclass(frozen=True)
class Verdict:
    """A source's answer to one question about one clip, in one vote, with its own words."""

    sample_id: str
    source: str
    question: str
    vote: int
    answer: bool | None  # null: unreadable, refused, blocked or failed; `error` holds which
    p_yes: float | None  # probability of the affirmative answer, where the source gives one
    score: float | None  # raw metric value, for sources that measure
    reason: str | None
    raw: str | None  # the reply as it came
    model: str
    model_version: str
    rubric_hash: str
    frames: list[int]  # indices of the clip's frames that the source judged
    tokens: int | None
    cost: float | None  # US dollars
    error: str | None


@dataclass(frozen=True)
class Label:
    """A source's verdicts on one clip, combined by the rubric's rule."""

    sample_id: str
    source: str
    label: bool | None
    p_accept: float | None
    score: float | None
    votes: int
    nulls: int
    reason: str | None


@dataclass(frozen=True)
class Asked:
    """A question that a source was asked about the clips of a prompt."""

    prompt: str
    question: str  # its name
    ask: str  # its words, without the rubric's instructions
    affirmative: str  # the word of answer true
    negative: str
    wanted: bool  # the answer in favour of the clip
    required: bool  # whether the label depends on it


@dataclass(frozen=True)
class Comparison:
    """A source's answer to one question about two clips of one prompt, as they were shown, in one vote."""

    first: str  # sample_id of the clip that was shown first; to people, on the left
    second: str
    source: str
    question: str
    vote: int
    answer: str | None  # what is better: first, second or tie; null: unreadable, refused or failed, see `error`
    p_first: float | None  # probability that the first is better, where the source gives one
    reason: str | None
    raw: str | None  # the reply as it came
    model: str
    model_version: str
    rubric_hash: str
    first_frames: list[int]  # indices of the first clip's frames that the source judged
    second_frames: list[int]
    tokens: int | None
    cost: float | None  # US dollars
    error: str | None


@dataclass(frozen=True)
class Preference:
    """A source's comparisons of two clips of one prompt, combined; `first` and `second` are names, not an order."""

    prompt_id: str
    first: str  # sample_id
    second: str
    source: str
    preferred: str | None  # first, second or tie; null: an answer is missing
    p_first: float | None  # probability that `first` is better, mean over both orders
    forward: str | None  # the answer when `first` was shown first: first, second or tie
    backward: str | None  # the answer when `second` was shown first
    nulls: int  # answers that are missing
    reason: str | None


@dataclass(frozen=True)
class Weighted:
    """One training row of RWR (or SFT, with weight 1)."""

    sample_id: str
    prompt_id: str
    reward: float  # r before shaping
    weight: float  # eta * r + gamma


@dataclass(frozen=True)
class Pair:
    """One training row of DPO: two samples of one prompt."""

    prompt_id: str
    chosen: str  # sample_id
    rejected: str  # sample_id
    margin: float  # reward of chosen minus reward of rejected, > 0


@dataclass(frozen=True)
class SharedStart:
    """Two clips of a set that were sampled from one partly noised clip, with a noise each."""

    prompt_id: str
    start: str  # sample_id of the clip that both start from, in the set of a round
    first: str  # sample_id
    second: str


@dataclass(frozen=True)
class DensePair:
    """One training row of DenseDPO: two clips with one start, and which is better in each latent frame."""

    prompt_id: str
    first: str  # sample_id
    second: str
    better: list[int]  # by latent frame: 1 the first, -1 the second, 0 neither or not known


@dataclass(frozen=True)
class ClipMotion:
    """How much moves in a clip: feedback.metrics.flow says what the number is."""

    sample_id: str
    motion: float | None  # pixels; null for a clip of one frame


@dataclass(frozen=True)
class PromptSpread:
    """How different a policy's clips of one prompt are: evaluation.effects.diversity says what the numbers are."""

    prompt_id: str
    clips: int
    vendi: float | None  # 1 to clips
    distance: float | None  # 0 to 1


@dataclass(frozen=True)
class ClipDrift:
    """How far a policy's prediction is from the base's, on one of the base's clips at one time."""

    sample_id: str
    t: float  # in (0, 1), 1 is pure noise
    squared: float  # mean over predicted elements of (policy - base)²


R = typing.TypeVar("R")
WithId = typing.TypeVar("WithId", Sample, Verdict, Label, Weighted)
Row = (
    Sample
    | Verdict
    | Label
    | Asked
    | Comparison
    | Preference
    | Weighted
    | Pair
    | SharedStart
    | DensePair
    | ClipMotion
    | PromptSpread
    | ClipDrift
)

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), list[int]: pa.list_(pa.int64())}


def schema(row_type: type) -> pa.Schema:
    """Arrow schema of a row type; only fields annotated `X | None` are nullable."""
    columns = []
    for field, hint in ((f, typing.get_type_hints(row_type)[f.name]) for f in fields(row_type)):
        optional = isinstance(hint, types.UnionType)
        plain = next(a for a in typing.get_args(hint) if a is not type(None)) if optional else hint
        columns.append(pa.field(field.name, _ARROW[plain], nullable=optional))
    return pa.schema(columns)


def write_rows(path: Path, rows: Iterable[Row], row_type: type) -> None:
    """Write rows as one parquet file; equal rows give equal bytes."""
    names = [field.name for field in fields(row_type)]
    cells = [{n: getattr(row, n) for n in names} for row in rows]
    _check_whole_numbers(path, cells, row_type)
    table = pa.Table.from_pylist(cells, schema=schema(row_type))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")


def read_rows(path: Path, row_type: type[R]) -> list[R]:
    """Rows of a parquet file. Raises ValueError naming the file where columns differ from the row type's."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error
    wanted = schema(row_type)
    if table.schema.names != wanted.names:
        raise ValueError(f"{path}: columns {table.schema.names}, expected {wanted.names} of {row_type.__name__}")
    try:
        table = table.cast(wanted)
    except (ValueError, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{path}: not a table of {row_type.__name__} ({error})") from error
    return [row_type(**row) for row in table.to_pylist()]


def _check_whole_numbers(path: Path, cells: Sequence[dict[str, typing.Any]], row_type: type) -> None:
    """Raises ValueError for 1.5 in an integer column, which Arrow would cut to 1 silently."""
    whole = [column.name for column in schema(row_type) if pa.types.is_integer(column.type)]
    for number, row in enumerate(cells):
        for name in whole:
            if isinstance(row[name], numbers.Real) and row[name] % 1:
                raise ValueError(f"{path}: row {number}: {name} is {row[name]!r}, expected a whole number")


def by_id(rows: Sequence[WithId]) -> dict[str, WithId]:
    """Rows keyed by their sample_id. Raises ValueError on a duplicate."""
    keyed = {row.sample_id: row for row in rows}
    if len(keyed) != len(rows):
        raise ValueError(f"{len(rows) - len(keyed)} duplicate sample_id among {len(rows)} rows")
    return keyed
