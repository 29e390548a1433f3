"""Many coroutines that write to one ledger, and wait for the disk together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from feedback.network.ledger import Ledger

T = TypeVar("T")


class GroupCommit:
    """Calls of a ledger's methods, off the event loop: those that come while the disk is busy share its next commit.

    Use it in a `with`, which no call may outlive.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._thread = ledger, ThreadPoolExecutor(1, "ledger")
        self._waiting: list[tuple[Callable[[], Any], asyncio.Future]] = []
        self._writer: asyncio.Task | None = None

    def __enter__(self) -> "GroupCommit":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    async def do(self, step: Callable[[], T]) -> T:
        """What the step returns, once all that it wrote is on disk. Raises what it raises."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((step, done))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return await done

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            ends = await loop.run_in_executor(self._thread, self._commit, [step for step, _ in group])
            for (_, done), (result, error) in zip(group, ends, strict=True):
                if done.cancelled():
                    continue
                if error is None:
                    done.set_result(result)
                else:
                    done.set_exception(error)
        self._writer = None

    def _commit(self, steps: Sequence[Callable[[], Any]]) -> list[tuple[Any, Exception | None]]:
        """What each step returned or raised."""
        try:
            return [(result, None) for result in self._ledger.together(steps)]
        except Exception:  # none of them was written, and not all of them need fail
            return [self._alone(step) for step in steps]

    @staticmethod
    def _alone(step: Callable[[], Any]) -> tuple[Any, Exception | None]:
        try:
            return step(), None
        except Exception as error:  # for whoever waits for it
            return None, error
