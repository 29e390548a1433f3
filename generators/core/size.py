"""The size of a clip, and the sizes that a generator can make."""

from pydantic.dataclasses import dataclass

from data.config import STRICT, Count, Positive


@dataclass(frozen=True, config=STRICT)
class VideoSize:
    """Section `video`: the size of a clip."""

    num_frames: Count
    height: Count  # pixels
    width: Count  # pixels
    fps: Positive  # frames per second, of the mp4


def check_size(name: str, value: int, every: int, offset: int = 0, most: int | None = None) -> None:
    """Raises ValueError naming the nearest sizes unless value is every * k + offset for some k from 1 to `most`."""
    k = max((value - offset) // every, 1)
    below = (k if most is None else min(k, most)) * every + offset
    if value == below:
        return
    rule = f"{every} k {offset:+d}" if offset else f"a multiple of {every}"
    largest = None if most is None else most * every + offset
    nearest = f"{below}" if value < below or below == largest else f"{below} or {below + every}"
    limit = f", at most {largest}" if largest is not None and value > largest else ""
    raise ValueError(f"{name}: {value} cannot be represented; it must be {rule}{limit}, nearest is {nearest}")
