"""Prompts to the hidden states of a T5, as the pipelines of several families make them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TEXT_BATCH = 16  # prompts per forward of the text encoder: UMT5-xxl's attention logits at 512 tokens take 1 GiB


@torch.no_grad()
def encode_padded(
    encoder: Any,
    tokenizer: Any,
    texts: Sequence[str],
    length: int,
    device: torch.device,
    masked: bool,
    zeroed: bool = False,
) -> Tensor:
    """(P, length, D) hidden states on the CPU, in the encoder's dtype, of texts padded to `length` tokens.

    masked: the encoder does not attend to padding; else it is read like any token (CogVideoX). zeroed: the states of
        padding become 0 (Wan). Raises ValueError naming a text of more tokens.
    """
    for text, ids in zip(texts, tokenizer(list(texts)).input_ids if texts else [], strict=True):
        if len(ids) > length:
            raise ValueError(f"prompt of {len(ids)} tokens, max_prompt_tokens is {length}: {text!r}")
    states = []
    for start in range(0, len(texts), TEXT_BATCH):
        batch = list(texts[start : start + TEXT_BATCH])
        tokens = tokenizer(
            batch, padding="max_length", max_length=length, return_attention_mask=True, return_tensors="pt"
        ).to(device)
        hidden = encoder(tokens.input_ids, tokens.attention_mask if masked else None).last_hidden_state
        if zeroed:
            hidden = hidden.masked_fill(tokens.attention_mask[..., None] == 0, 0)
        states.append(hidden.cpu())
    return torch.cat(states)
