"""For tables of wrong values in one test: what a call is refused with, and which value was accepted."""

import re
from collections.abc import Callable, Iterable
from typing import Any


def assert_refused(call: Callable[[Any], Any], cases: Iterable[tuple[Any, str]]) -> None:
    """Each value makes the call raise a ValueError whose text matches the pattern beside it."""
    for value, pattern in cases:
        try:
            call(value)
        except ValueError as error:
            assert re.search(pattern, str(error)), f"{value!r}: {error}"
        else:
            raise AssertionError(f"{value!r} was accepted")
