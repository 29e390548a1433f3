"""Reads JSON out of what a text model replied, strictly: a reply of another shape is an error in words, not a guess."""

import json
import re
from typing import Any

SHOWN = 80  # characters of an unreadable reply that its error repeats


def read_json(text: str) -> Any:
    """A whole reply as JSON, also in a code block. Raises ValueError showing how the reply begins."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else text)
    except ValueError as error:
        raise ValueError(f"the reply is not JSON ({error}): {shown(text)}") from error


def shown(given: Any) -> str:
    """A reply, or a part of it, as far as an error repeats it."""
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")
