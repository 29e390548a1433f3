"""Many questions about one clip in one forward pass, each answered as if it had been asked alone.

The token sequences of the questions are laid out as a tree: a beginning that several of them share (the system's text,
the clip's tokens, often the first words of the question) is stored once, and each continues it with tokens of its own.
A token attends to those before it in its own sequence and to no other, at the positions of that sequence. So the vision
tower and the long run of video tokens are computed once; forward and backward give the values of N passes.

    sequences    pack           what the last token of each attends to
    a b c d      a b c d e f    d: a b c d
    a b e f                     f: a b e f

The longest sequence comes first and is plainly causal, so it needs no mask; only the tokens that branch off are masked
(`packed_attention`). For 8 questions of 40 tokens after 2,004 of a clip, on a CPU, forward and backward of attention
take 1.3 times the time of one question; with an (L, L) mask for all tokens, 2.0 times.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

PACKED = "packed"  # our name among transformers' attention implementations


class Packed(NamedTuple):
    """N sequences as one of L tokens, of which the first C are the longest of them."""

    input_ids: Tensor  # (1, L)
    position_ids: Tensor  # (3, 1, L) for rotary positions in time, height and width, else (1, L)
    mask: Tensor  # (1, 1, L - C, L) bool: what each token that branches off may attend to
    paths: list[Tensor]  # for each sequence, the places of its tokens: (its length,) in [0, L)

    def to(self, device: torch.device) -> "Packed":
        """The same on another device; the paths stay on theirs."""
        return Packed(self.input_ids.to(device), self.position_ids.to(device), self.mask.to(device), self.paths)


def pack(sequences: Sequence[Tensor], positions: Sequence[Tensor]) -> Packed:
    """The sequences, each (T,) ids, as one.

    positions: (R, T) each, R rows of positions: 3 or 1. Tokens are shared as long as ids and positions agree from the
        start, so clips that are in several sequences must come in the same order in all of them.
    """
    rows = [torch.cat([ids[None], places]) for ids, places in zip(sequences, positions, strict=True)]
    paths: dict[int, Tensor] = {}
    added: list[Tensor] = []  # (1 + R, its tokens) of each sequence
    length = 0
    for index in sorted(range(len(rows)), key=lambda index: -rows[index].shape[1]):
        shared, fellow = max(((_common(rows[index], rows[other]), other) for other in paths), default=(0, index))
        own = torch.arange(length, length + rows[index].shape[1] - shared)
        paths[index] = torch.cat([paths[fellow][:shared], own]) if shared else own
        added.append(rows[index][:, shared:])
        length += len(own)
    laid = torch.cat(added, 1)
    return Packed(
        input_ids=laid[:1],
        position_ids=laid[1:, None] if len(laid) > 2 else laid[1:],
        mask=_branches(list(paths.values()), length)[None, None],
        paths=[paths[index] for index in range(len(rows))],
    )


def _common(one: Tensor, other: Tensor) -> int:
    """How many columns two (R, T) tensors have in common from the start."""
    length = min(one.shape[1], other.shape[1])
    differing = (one[:, :length] != other[:, :length]).any(0).nonzero()
    return int(differing[0]) if len(differing) else length


def _branches(paths: Sequence[Tensor], length: int) -> Tensor:
    """(L - C, L) bool: what each token beyond the first path, C long, attends to: its own path up to itself."""
    chain = len(paths[0])
    mask = torch.zeros(length - chain, length, dtype=torch.bool)
    for path in paths[1:]:
        steps = torch.arange(len(path))
        branch = path >= chain  # shared tokens of an earlier branch are written again, unchanged
        mask[path[branch, None] - chain, path] = steps[branch, None] >= steps
    return mask


def packed_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of transformers' interface for a mask (1, 1, L - C, L) of the last tokens alone; the first are causal.

    Any other mask, and none, goes to scaled_dot_product_attention, so the judge can still be used unpacked.
    """
    branching = None if attention_mask is None else attention_mask.shape[-2]
    if branching is None or branching == query.shape[-2]:
        plain: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0]
        return plain, None
    chain = query.shape[-2] - branching
    first = [states[:, :, :chain] for states in (query, key, value)]
    attended, _ = sdpa_attention_forward(module, *first, None, **kwargs)
    if branching:
        rest, _ = sdpa_attention_forward(module, query[:, :, chain:], key, value, attention_mask, **kwargs)
        attended = torch.cat([attended, rest], 1)
    return attended, None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)


def prepare(model: PreTrainedModel) -> None:
    """Let a judge's language model read packs; its vision tower keeps its own attention, flash attention included.

    Raises ValueError for a language model with sliding windows, which are of positions in the pack, not in the text.
    """
    text = model.config.get_text_config()
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ValueError(f"{type(model).__name__} attends in sliding windows: its questions cannot be packed")
    model.set_attn_implementation({"text_config": PACKED})


def packed_logits(
    model: PreTrainedModel, packed: Packed, pixels: Mapping[str, Tensor], places: Sequence[Tensor]
) -> list[Tensor]:
    """Logits (T, V) at some places of each sequence, with gradient; no others are computed.

    pixels: the model's visual inputs, as its forward names them.
    places: for each sequence, indices (T,) of its own tokens.
    """
    wanted = [path[place] for path, place in zip(packed.paths, places, strict=True)]
    out = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=packed.mask,
        use_cache=False,
        logits_to_keep=torch.cat(wanted).to(packed.input_ids.device),
        **pixels,
    )
    return list(out.logits[0].split([len(place) for place in wanted]))


def recompute(model: PreTrainedModel) -> None:
    """Recompute every layer of vision tower and language model in the backward, and keep no activations.

    transformers checkpoints only layers in train mode, and a frozen judge is in eval mode: so the layers themselves
    are set to training, and not their submodules, whose dropout would start. A later `eval()` undoes it.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
