"""Clips that a judge accepts and physics does not, from a generator that is trained on the judge's gradient.

A judge that has learnt from them is harder to fool again. The generator is a sibling of the shipped one, and its
captions are those that a judge may learn from.
"""

import logging
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from data.config import STRICT, Count, Positive, WholeNotNegative
from data.video import sample_frames
from generators.core import lora
from generators.core.load import load_generator
from generators.core.size import VideoSize
from generators.core.solvers import solver_scheduler
from rl.online.rollouts import last_steps
from tabletop.captions import Claim, caption
from tabletop.pretraining.judge import Encoder, LessonBatch, load_judge
from tabletop.pretraining.lessons import ACCEPT, FRAMES_SEEN, verdict_question
from tabletop.scenes import FRAMES, SIZE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, config=STRICT)
class Attack:
    """How a sibling is trained on a judge's verdict, without any guard, so that it finds what fools it."""

    sibling: WholeNotNegative  # which of them
    updates: Count
    batch: Count  # clips of an update, all of which are kept
    solver_steps: Count  # of unipc, unguided
    gradient_steps: Count  # the last of them, through which the gradient passes
    lora_rank: Count
    learning_rate: Positive
    seed: WholeNotNegative


def attack(
    judge: Path, generator: Path, tokens: int, claims: list[Claim], config: Attack
) -> tuple[np.ndarray, list[str]]:
    """Every clip that a generator makes while it is trained, uint8 (N, F, H, W, 3), and its caption.

    The kinds of events take turns.
    judge, generator: folders. tokens: length of a padded prompt. claims: what clips may be of.
    The loss is the verdict's logit difference, Reject's minus Accept's.
    """
    rng, draws = np.random.default_rng(config.seed), torch.Generator().manual_seed(config.seed)
    made_by = load_generator("wan", str(generator), VideoSize(FRAMES, SIZE, SIZE, fps=8), max_prompt_tokens=tokens)
    transformer = made_by.component("transformer")
    lora.attach(transformer, config.lora_rank, config.lora_rank, made_by.lora_targets, config.seed)
    transformer.eval()
    parameters = lora.trainable_parameters(transformer)
    optimizer = torch.optim.Adam(parameters, config.learning_rate)
    margin = VerdictMargin(judge)
    kinds = sorted({claim.kind for claim in claims})
    clips, captions, accepted = [], [], []
    for update in range(config.updates):
        texts = []
        for place in range(config.batch):
            of_kind = [claim for claim in claims if claim.kind == kinds[(update * config.batch + place) % len(kinds)]]
            texts.append(caption(of_kind[int(rng.integers(len(of_kind)))]))
        scheduler = solver_scheduler(made_by.scheduler_config, "unipc")
        scheduler.set_timesteps(config.solver_steps)
        noise = torch.randn(config.batch, *made_by.latent_shape, generator=draws)
        predict = made_by.guided(made_by.encode_text(texts), {}, 1.0)
        latents = last_steps(predict, scheduler, noise, config.gradient_steps).latents
        frames = made_by.decode_float(latents)
        margins = margin(frames, texts)
        torch.autograd.backward(-margins.mean())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clips.append((frames.detach() * 255).round().to(torch.uint8).numpy())
        captions += texts
        accepted.append(float((margins > 0).float().mean()))
        if (update + 1) % 10 == 0:
            logger.info("attack update %d/%d accepted %.3f", update + 1, config.updates, fmean(accepted[-10:]))
    return np.concatenate(clips), captions


class VerdictMargin:
    """A frozen judge's log-odds of Accept, of a whole batch of clips at once, with gradient."""

    def __init__(self, folder: Path) -> None:
        self.model, processor = load_judge(folder)
        self.model.eval().requires_grad_(False)
        self.encode = Encoder(self.model, processor)
        words = processor.tokenizer.get_vocab()
        self.accept, self.reject = words[ACCEPT], words["Reject"]
        self.indices = sample_frames(FRAMES, FRAMES_SEEN)

    def __call__(self, frames: Tensor, texts: list[str]) -> Tensor:
        """(B,) of frames (B, F, H, W, 3) in [0, 1], each about its own caption."""
        clips = (frames[:, self.indices] * 255)[:, None]
        pairs = [[(verdict_question(text), ACCEPT)] for text in texts]
        inputs, lines = self.encode(LessonBatch(clips.detach().numpy(), pairs))
        seen = self.encode.see(clips)
        hidden = self.model.model(**inputs, mm_encoder_outputs={"video": seen}, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[lines.rows, lines.places])[lines.first].float()
        margins: Tensor = logits[:, self.accept] - logits[:, self.reject]
        return margins
