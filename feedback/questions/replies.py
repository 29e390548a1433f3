"""Reads the JSON of a text model's reply, strictly: a reply of another form is an error, not a guess."""

import json
from typing import Any

from feedback.core.answers import unfenced

QUOTED = 80  # characters of an unreadable reply that its error repeats


def read_json(text: str) -> Any:
    """A whole reply as JSON, also in a code block. Raises ValueError quoting the beginning of the reply."""
    try:
        return json.loads(unfenced(text))
    except ValueError as error:
        raise ValueError(f"the reply is not JSON ({error}): {quoted(text)}") from error


def quoted(given: Any) -> str:
    """The beginning of a reply, or of a part of it, for an error."""
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return repr(text if len(text) <= QUOTED else text[:QUOTED] + "…")
