"""Processes that tests start and kill, forked from a server that has imported torch and diffusers once."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload([
    "tests.support.training", "tests.support.online", "diffusers.schedulers", "peft",
    "diffusers.models.transformers.transformer_wan", "diffusers.models.autoencoders.autoencoder_kl_wan",
])  # fmt: skip


def start(target: Callable[..., None], *arguments: Any, **environment: str) -> BaseProcess:
    """A process that calls `target`, a function of a module, with these environment variables."""
    child = FORKSERVER.Process(target=_called, args=(target, arguments, environment))
    child.start()
    return child


def _called(target: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    target(*arguments)
