"""What the processes of a group say to the head: an actor beside the stage's own process, which imports nothing."""

from typing import Any


class Messages:
    """Keeps what is said until it is taken."""

    def __init__(self) -> None:
        self._said: list[tuple[str, Any]] = []

    def say(self, what: str, said: tuple[Any, ...]) -> None:
        """Add a message. what: its kind."""
        self._said.append((what, said))

    def taken(self) -> list[tuple[str, Any]]:
        """The messages since the last call."""
        said, self._said = self._said, []
        return said
