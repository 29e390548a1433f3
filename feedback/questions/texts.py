"""Models that write texts: the requests that they take, their replies, and the protocol of every such model."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class TextRequest(NamedTuple):
    """A message to a text model, with or without a picture."""

    text: str
    image: bytes | None = None  # a picture, as PNG


class TextReply(NamedTuple):
    """The reply to a request, or why there is none."""

    text: str | None
    error: str | None


class TextModel(Protocol):
    """A model that writes texts."""

    name: str  # of the source, with its model: the author of what it writes

    def replies(self, requests: Sequence[TextRequest], task: str) -> list[TextReply]:
        """The reply to each request, in their order. task: a few words under which the ledger files the calls.

        Raises LabelError where no call can succeed (a wrong key), and where the budget is spent; the answers so far
        are kept and not requested again.
        """
