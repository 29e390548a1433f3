"""Conditions of clip sets in tests that do not look at them."""

from collections.abc import Iterable

import torch

from data.store import PromptConditions


def blank_conditions(prompt_ids: Iterable[str]) -> PromptConditions:
    return PromptConditions({name: {"text": torch.zeros(2, 3)} for name in prompt_ids}, {"text": torch.zeros(2, 3)})
