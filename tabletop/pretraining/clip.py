"""The tabletop's CLIP: a small CLIPModel that learns which caption a single frame belongs to.

It learns from frames of rendered clips that show what their captions say, of all captions, half of them passed through
the autoencoder, as a generator would draw them. It sees no generated clip, no botched one and no verdict of physics.
Like every CLIP it reads one frame at a time, so that it cannot tell a lift from a drop.
"""

import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from data.config import STRICT, Count, Positive, Probability, WholeNotNegative
from tabletop.captions import Claim, Thing, all_claims, caption
from tabletop.pretraining.optimizer import Ema, MuonAdamW
from tabletop.pretraining.tokenizers import caption_tokenizer
from tabletop.render import random_clip
from tabletop.scenes import FRAMES, SIZE

logger = logging.getLogger(__name__)

PATCH = 4  # pixels
TOKENS = 16  # the longest caption has 10 words
MAX_LOGIT_SCALE = math.log(100)  # as in the CLIP paper, section 2.5
PAD, BOS, UNKNOWN, EOS = "<pad>", "<|startoftext|>", "<unk>", "<|endoftext|>"


@dataclass(frozen=True, config=STRICT)
class ClipConfig:
    """Sizes and schedule of the CLIP's pretraining."""

    clips: Count  # rendered of each event
    steps: Count
    pairs: Count  # of things in a batch, beside every event of one thing
    vision_hidden: Count
    vision_layers: Count
    text_hidden: Count
    text_layers: Count
    projection: Count
    muon_lr: Positive
    adam_lr: Positive
    ema: Probability
    seed: WholeNotNegative


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the tabletop's captions, between CLIP's two marks.

    CLIPModel pools a text at its first end mark. The mark's id must not be 2, which CLIPModel reads in another way.
    """
    special = (PAD, BOS, UNKNOWN, EOS)
    return caption_tokenizer(special, f"{BOS} $A {EOS}", PAD, UNKNOWN, EOS, BOS, max_length=TOKENS)


def clip_processor(mean: list[float], std: list[float]) -> CLIPProcessor:
    """CLIP's processor for frames of SIZE pixels, which it leaves at their size. mean, std: per channel, of [0, 1]."""
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=mean, image_std=std
    )
    return CLIPProcessor(image_processor, clip_tokenizer())


def tiny_clip(config: ClipConfig, tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Untrained CLIPModel; heads of 32 dimensions, feed-forward layers 3 times as wide as the hidden size."""
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPModel(
        CLIPConfig(
            text_config={
                **tokens,
                **_widths(config.text_hidden, config.text_layers, config.projection),
                "vocab_size": len(tokenizer),
                "max_position_embeddings": TOKENS,
            },
            vision_config={
                **_widths(config.vision_hidden, config.vision_layers, config.projection),
                "image_size": SIZE,
                "patch_size": PATCH,
            },
            projection_dim=config.projection,
            **tokens,
        )
    )


def _widths(hidden: int, layers: int, projection: int) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "projection_dim": projection,
    }


def all_events() -> list[Claim]:
    """Every claim once: two things closer to each other are the same event in either order."""
    events: dict[tuple[str, frozenset[Thing]], Claim] = {}
    for claim in all_claims():
        events.setdefault(claim.event, claim)
    return list(events.values())


def render_events(events: list[Claim], clips: int, seed: int) -> np.ndarray:
    """`clips` rendered clips that show each event, uint8 (events, clips, F, H, W, 3)."""
    rng = np.random.default_rng(seed)
    return np.stack([[random_clip(event, rng, botched=0.0)[0] for _ in range(clips)] for event in events])


def draw_events(events: list[Claim], pairs: int, rng: np.random.Generator) -> list[int]:
    """Indices of a batch's events, each once: all of one thing, and all of `pairs` random pairs of things.

    So every frame is compared with the captions of its things' other events, and of its event with things of other
    colours and shapes. No caption stands in a batch twice, so no right pair counts as a wrong one.
    """
    of_pair: dict[frozenset[Thing], list[int]] = {}
    for index, event in enumerate(events):
        if len(event.things) == 2:
            of_pair.setdefault(frozenset(event.things), []).append(index)
    groups = list(of_pair.values())
    drawn = [index for i in rng.permutation(len(groups))[:pairs] for index in groups[i]]
    return [index for index, event in enumerate(events) if len(event.things) == 1] + drawn


def _caption(event: Claim, rng: np.random.Generator) -> str:
    """The event in words, its things in either order."""
    return caption(replace(event, things=event.things[:: int(rng.choice([-1, 1]))]))


def train_clip(config: ClipConfig, events: list[Claim], clips: np.ndarray, folder: Path) -> None:
    """Train a CLIP and save it as a folder that CLIPModel and CLIPProcessor load.

    clips: uint8 (events, N, F, H, W, 3) that show their events.
    The loss is CLIPModel's own: cross-entropy over a batch of one frame an event, the mean of both directions. Which of
    a clip's F frames is drawn uniformly, so that the sum of the similarities over a clip grows as its frames are spread
    like those of the event. A frame may fit several captions (the end of a drop is the start of a lift), so the
    least loss is not 0; similarity grows with how much likelier a frame is under its caption than under the others.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    mean, std = ([round(float(v), 4) for v in f(clips[:, 0], (0, 1, 2, 3)) / 255] for f in (np.mean, np.std))
    processor = clip_processor(mean, std)
    model = tiny_clip(config, processor.tokenizer).train()
    logger.info("clip of %.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    optimizer = MuonAdamW(model, config.steps, config.muon_lr, config.adam_lr, ("layers", "patch_embedding"))
    ema = Ema(model.parameters(), config.ema)
    start, smooth, right = time.monotonic(), 0.0, 0.0
    for step in range(config.steps):
        drawn = draw_events(events, config.pairs, rng)
        texts = [_caption(events[index], rng) for index in drawn]
        frames = clips[drawn, rng.integers(clips.shape[1], size=len(drawn)), rng.integers(FRAMES, size=len(drawn))]
        inputs = processor.tokenizer(texts, padding=True, return_tensors="pt")
        out = model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            pixel_values=pixel_values(frames, mean, std),
            return_loss=True,
        )
        optimizer.step(out.loss)
        with torch.no_grad():
            model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        ema.update()
        hits = float((out.logits_per_image.argmax(1) == torch.arange(len(drawn))).float().mean())
        loss = float(out.loss.detach())
        smooth, right = (loss, hits) if step == 0 else (0.98 * smooth + 0.02 * loss, 0.98 * right + 0.02 * hits)
        if step % 100 == 0:
            logger.info(
                "clip step %d/%d loss %.3f captions found %.3f scale %.1f %.0f s",
                step,
                config.steps,
                smooth,
                right,
                float(model.logit_scale.detach().exp()),
                time.monotonic() - start,
            )
    ema.swap()
    model.eval().half().save_pretrained(folder)
    processor.save_pretrained(folder)


def pixel_values(frames: np.ndarray, mean: list[float], std: list[float]) -> Tensor:
    """The output of CLIP's image processor for uint8 (B, H, W, 3) frames of its own size, float (B, 3, H, W)."""
    unit = torch.as_tensor(frames).permute(0, 3, 1, 2).float() / 255
    return (unit - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
