"""The tabletop's judge: a small Qwen2.5-VL that learns to see clips and to say Accept or Reject.

What it is taught, and what it is not: rendered clips of all captions with the renderer's truth, as a VLM knows the
words of its world; and clips of the generator's siblings, which were trained on from it, with the physics check's
verdict and reason, but only for captions outside the prompt set that RL trains and tests on. It never saw a clip of the
shipped base, nor any generated clip of a prompt of that set.

Every lesson is a question in words and an answer in words. `QUESTIONS` says what is asked; another kind of
question is another entry there and lessons that carry its answers.
"""

import logging
import re
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import Qwen2_5_VLForConditionalGeneration

from data.tabletop.captions import COLORS, KINDS, SHAPES, Claim, all_claims, caption, parse, vocabulary
from data.tabletop.physics import check, find_blobs, shape_of
from data.tabletop.render import render
from data.tabletop.scenes import BOTCHES, FRAMES, SIZE, make_scene
from data.video import sample_frames
from feedback.rubric import Rubric, load_rubric
from feedback.vlm import build_inputs, sampled_fps
from pretraining.judge_model import qwen_processor, tiny_qwen_config, word_level_tokenizer
from pretraining.optimizer import Ema, MuonAdamW

logger = logging.getLogger(__name__)

RUBRIC = Path("feedback/rubrics/tabletop.yaml")
QUESTIONS = {"describe": "describe the video"}  # beside the verdict, whose words are the rubric's
FRAMES_SEEN = 8
PATCH, MERGE = 4, 2  # pixels of a vision patch; patches merged per side into one token
FPS = 8.0
REASONS = {  # botch -> the judge's words for it
    "static": "nothing moves", "reverse": "moves the wrong way", "partial": "stops too soon", "teleport": "jumps",
    "vanish": "vanishes", "wrong_color": "wrong color", "wrong_shape": "wrong shape", "recolor": "changes color",
    "reshape": "changes shape", "hover": "hangs in the air", "sink": "sinks into the table",
    "one_only": "only one moves",
    "empty": "nothing there", "duplicate": "two of them", "stray": "something else appears", "other": "another scene",
    "resize": "changes size", "form": "wrong form", "place": "wrong place",
}  # fmt: skip
PHYSICS = (  # what the physics check says, first match -> the judge's words
    (r"not a \w+ throughout: a (\w+)", "wrong shape {}"),
    (r"two \w+ things", REASONS["duplicate"]),
    (r"no \w+ thing anywhere", REASONS["empty"]),
    (r"no \w+ thing in frame|vanishes", REASONS["vanish"]),
    (r"changes its size", REASONS["resize"]),
    (r"slanted|stretched|ragged|swells|spreads", REASONS["form"]),
    (r"jumps|at once", REASONS["teleport"]),
    (r"a \w+ thing (comes|wanders|changes)", REASONS["stray"]),
    (r"only one of them", REASONS["one_only"]),
    (r"-\d+ units in the wanted|back on itself", REASONS["reverse"]),
    (r"units|by a factor|is not squeezed|come off|come out", REASONS["partial"]),
    (r"", REASONS["place"]),  # starts, stays or ends where it should not
)


@dataclass(frozen=True)
class JudgeConfig:
    """Sizes and schedule of the judge's pretraining."""

    rendered: int  # clips with the renderer's truth
    steps: int
    batch: int
    warmup_describing: float  # part of the steps that only describe
    generated_share: float  # part of a batch from the generator's siblings, after that
    vision_hidden: int
    vision_layers: int
    text_hidden: int
    text_layers: int
    muon_lr: float
    adam_lr: float
    ema: float
    seed: int


@dataclass(frozen=True)
class Lessons:
    """Clips with what may be said of them. frames: uint8 (N, 8, H, W, 3); the lists are N long."""

    frames: np.ndarray
    questions: list[list[tuple[str, str]]]  # for each clip, (question text, answer) pairs to draw from

    def __len__(self) -> int:
        return len(self.questions)


@lru_cache
def _rubric() -> Rubric:
    return load_rubric(RUBRIC)


def words() -> list[str]:
    """The judge's whole vocabulary beside the special tokens."""
    rubric = _rubric()
    texts = [rubric.text(question, "") for question in rubric.questions]
    texts += [*QUESTIONS.values()] + list(REASONS.values()) + ["Accept Reject because to and"]
    return sorted({*vocabulary(), *COLORS, *SHAPES, *(word for text in texts for word in text.split())})


def verdict_question(text: str) -> str:
    rubric = _rubric()
    return rubric.text(rubric.questions[0], text)


def same_event(one: Claim, other: Claim) -> bool:
    return one.kind == other.kind and set(one.things) == set(other.things)


def near_miss(claim: Claim, allowed: list[Claim], rng: np.random.Generator) -> Claim:
    """Another allowed claim; mostly one that shares the kind or a thing, which is the harder to tell apart."""
    others = [c for c in allowed if not same_event(c, claim)]
    near = [c for c in others if c.kind == claim.kind or set(c.things) & set(claim.things)]
    return _pick(near if near and rng.random() < 0.7 else others, rng)


def _pick(claims: list[Claim], rng: np.random.Generator) -> Claim:
    return claims[int(rng.integers(len(claims)))]


def rendered_lessons(count: int, allowed: list[Claim], seed: int) -> tuple[np.ndarray, Lessons]:
    """Rendered clips, half of them botched, with verdicts, near-miss prompts and descriptions.

    Returns all FRAMES frames too, for whoever wants to pass them through an autoencoder.
    """
    rng = np.random.default_rng(seed)
    of_kind = {kind: [c for c in allowed if c.kind == kind] for kind in KINDS}
    frames, questions = np.empty((count, FRAMES, SIZE, SIZE, 3), np.uint8), []
    for i in range(count):
        claim = _pick(of_kind[list(KINDS)[i % len(KINDS)]], rng)
        botch = str(rng.choice(BOTCHES[claim.kind])) if rng.random() < 0.5 else None
        scene = make_scene(claim, rng, botch)
        frames[i] = render(scene)
        told = "Accept" if botch is None else f"Reject because {REASONS[botch]}"
        asked = [(verdict_question(caption(claim)), told)] * 3
        if botch is None:
            asked.append(
                (verdict_question(caption(near_miss(claim, allowed, rng))), f"Reject because {REASONS['other']}")
            )
        asked += [(QUESTIONS["describe"], _description(scene))] * 2
        questions.append(asked)
    return frames, Lessons(frames[:, sample_frames(FRAMES, FRAMES_SEEN)], questions)


def _description(scene) -> str:
    """What the scene really shows: its things by colour and shape in the first and the last frame, and the event."""
    first = sorted((e.x[0], str(e.look(0))) for e in scene.entities if e.visible[0] and e.thing.color in COLORS)
    last = sorted((e.x[-1], str(e.look(-1))) for e in scene.entities if e.visible[-1] and e.thing.color in COLORS)
    names = [" and ".join(name for _, name in side) or "nothing there" for side in (first, last)]
    event = caption(scene.claim) if scene.botch is None else REASONS[scene.botch]
    return f"{names[0]} to {names[1]} because {event}"


def generated_lessons(frames: np.ndarray, captions: list[str], allowed: list[Claim], seed: int) -> Lessons:
    """Clips of generators with what the physics check says of their caption, of a near miss of it, and of
    the things that are to be seen.

    frames: uint8 (N, FRAMES, H, W, 3). captions: of allowed claims.
    """
    rng, names = np.random.default_rng(seed), {caption(claim) for claim in allowed}
    if outside := {c for c in captions if c not in names}:
        raise ValueError(f"captions {sorted(outside)[:3]} are not among those that the judge may be taught")
    questions = []
    for clip, text in zip(frames, captions, strict=True):
        claim = parse(text)
        other = caption(near_miss(claim, allowed, rng))
        asked = [(verdict_question(text), _told(clip, text))] * 4 + [(verdict_question(other), _told(clip, other))]
        if {thing.shape for thing in claim.things} <= set(SHAPES):
            asked.append((QUESTIONS["describe"], f"{_seen(clip)} because {_told(clip, text)}"))
        questions.append(asked)
    return Lessons(frames[:, sample_frames(FRAMES, FRAMES_SEEN)], questions)


def _told(clip: np.ndarray, text: str) -> str:
    """The physics check's verdict and reason in the judge's words."""
    found = check(clip, text)
    if found.ok:
        return "Accept"
    words, match = next((words, match) for pattern, words in PHYSICS if (match := re.search(pattern, found.reason)))
    return f"Reject because {words.format(*match.groups())}"


def _seen(clip: np.ndarray) -> str:
    """The solids that stand free in the first and in the last frames, by colour and shape, from left to right."""
    blobs = find_blobs(clip)
    halves = []
    for part in (blobs[: len(blobs) // 2], blobs[-(len(blobs) // 2) :]):
        free = {color: [found[color][0] for found in part if found[color] and found[color][0].free] for color in COLORS}
        things = sorted((mine[0].x, f"{color} {shape_of(mine)}") for color, mine in free.items() if mine)
        halves.append(" and ".join(name for _, name in things) or REASONS["empty"])
    return " to ".join(halves)


def allowed_claims(rl_prompts: list[str]) -> list[Claim]:
    """Claims that the judge may be taught: none of the RL prompts, in either order of their things."""
    taken = [parse(prompt) for prompt in rl_prompts]
    return [claim for claim in all_claims() if not any(same_event(claim, other) for other in taken)]


class _Encoder:
    """Turns (frames, question, answer) into a padded training batch; the tokens of a question are the processor's."""

    def __init__(self, processor) -> None:
        self.processor, self.patch = processor, processor.video_processor
        self.cache: dict[str, dict[str, Tensor]] = {}
        self.dummy = np.zeros((FRAMES_SEEN, SIZE, SIZE, 3), np.uint8)
        self.fps = sampled_fps(sample_frames(FRAMES, FRAMES_SEEN), FPS)

    def _question(self, text: str) -> dict[str, Tensor]:
        if text not in self.cache:
            inputs = build_inputs(self.processor, [self.dummy], [text], [self.fps])
            if self.processor.tokenizer.unk_token_id in inputs["input_ids"]:
                raise ValueError(f"the judge's vocabulary lacks a word of {text!r}")
            self.cache[text] = {k: v for k, v in inputs.items() if k != "pixel_values_videos"}
        return self.cache[text]

    def __call__(
        self, frames: np.ndarray, questions: list[str], answers: list[str]
    ) -> tuple[dict[str, Tensor], Tensor]:
        tokenizer = self.processor.tokenizer
        asked = [self._question(q) for q in questions]
        told = [tokenizer(a + " <|im_end|>", add_special_tokens=False)["input_ids"] for a in answers]
        if tokenizer.unk_token_id in {token for ids in told for token in ids}:
            raise ValueError(f"the judge's vocabulary lacks a word of {answers}")
        left, right = max(a["input_ids"].shape[1] for a in asked), max(map(len, told))
        ids = torch.full((len(asked), left + right), tokenizer.pad_token_id)
        mask, kinds, labels = torch.zeros_like(ids), torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, (a, t) in enumerate(zip(asked, told, strict=True)):
            n = a["input_ids"].shape[1]
            ids[row, left - n : left], kinds[row, left - n : left] = a["input_ids"][0], a["mm_token_type_ids"][0]
            ids[row, left : left + len(t)] = labels[row, left : left + len(t)] = torch.tensor(t)
            mask[row, left - n : left + len(t)] = 1
        inputs = {
            "input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds,
            "pixel_values_videos": video_patches(torch.as_tensor(frames), self.patch),
            "video_grid_thw": torch.cat([a["video_grid_thw"] for a in asked]),
        }  # fmt: skip
        if "second_per_grid_ts" in asked[0]:
            inputs["second_per_grid_ts"] = torch.cat([torch.as_tensor(a["second_per_grid_ts"]) for a in asked])
        return inputs, labels


def video_patches(frames: Tensor, processor) -> Tensor:
    """What Qwen's video processor makes of uint8 (B, T, H, W, 3) frames of its own size, a whole batch at once.

    (B * T/2 * H/p * W/p, 3 * 2 * p * p), p the patch size; in its order of merged patches.
    """
    mean = torch.tensor(processor.image_mean).view(3, 1, 1) * 255
    std = torch.tensor(processor.image_std).view(3, 1, 1) * 255
    x = (frames.permute(0, 1, 4, 2, 3).float() - mean) / std
    b, t, c, h, w = x.shape
    p, m = processor.patch_size, processor.merge_size
    x = x.view(b, t // 2, 2, c, h // p // m, m, p, w // p // m, m, p).permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return x.reshape(b * (t // 2) * (h // p) * (w // p), c * 2 * p * p)


def train_judge(config: JudgeConfig, rendered: Lessons, generated: Lessons, folder: Path) -> None:
    """Train a judge and save it as a folder that the `qwen` source loads."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    tokenizer = word_level_tokenizer(words())
    processor = qwen_processor(tokenizer, patch=PATCH, merge=MERGE, size=SIZE)
    model = Qwen2_5_VLForConditionalGeneration(
        tiny_qwen_config(
            tokenizer,
            patch=PATCH,
            merge=MERGE,
            vision_hidden=config.vision_hidden,
            vision_layers=config.vision_layers,
            vision_heads=4,
            text_hidden=config.text_hidden,
            text_layers=config.text_layers,
            text_heads=4,
        )  # fmt: skip
    )
    logger.info("judge of %.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    encode = _Encoder(processor)
    optimizer = MuonAdamW(
        model, config.steps, config.muon_lr, config.adam_lr, ("blocks", "layers", "merger", "patch_embed")
    )
    ema = Ema(model.parameters(), config.ema)
    verdict_ids = torch.tensor(tokenizer.convert_tokens_to_ids(["Accept", "Reject"]))
    start, smooth, right = time.monotonic(), 0.0, 0.5
    for step in range(config.steps):
        describing = step < config.warmup_describing * config.steps
        frames, asked, told = _draw(config, rendered, generated, describing, rng)
        inputs, labels = encode(frames, asked, told)
        logits = model(**inputs, use_cache=False, logits_to_keep=_kept(labels)).logits[:, :-1]
        wanted = labels[:, -logits.shape[1] :]
        loss = cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)
        first, verdicts = wanted[:, 0], torch.isin(wanted[:, 0], verdict_ids)
        if verdicts.any():  # the token that a label is read from counts once more
            loss = loss + cross_entropy(logits[verdicts, 0], first[verdicts])
            right = 0.98 * right + 0.02 * float((logits[:, 0].argmax(-1) == first)[verdicts].float().mean())
        optimizer.step(loss)
        ema.update()
        smooth = float(loss.detach()) if step == 0 else 0.98 * smooth + 0.02 * float(loss.detach())
        if step % 100 == 0:
            logger.info(
                "judge step %d/%d loss %.3f verdicts right %.3f %.0f s",
                step,
                config.steps,
                smooth,
                right,
                time.monotonic() - start,
            )
    ema.swap()
    model.eval().half().save_pretrained(folder)
    processor.save_pretrained(folder)


def _kept(labels: Tensor) -> int:
    """Logits that are needed: one before the first answer token to the end."""
    return labels.shape[1] - int((labels != -100).any(0).nonzero()[0]) + 1


def _draw(
    config: JudgeConfig, rendered: Lessons, generated: Lessons, describing: bool, rng: np.random.Generator
) -> tuple[np.ndarray, list[str], list[str]]:
    """A batch of frames, questions and answers."""
    count = 0 if describing else round(config.generated_share * config.batch)
    parts = [
        (generated, rng.integers(0, len(generated), count)),
        (rendered, rng.integers(0, len(rendered), config.batch - count)),
    ]
    frames, asked, told = [], [], []
    for lessons, picks in parts:
        for i in picks:
            of_clip = lessons.questions[i]
            if describing:
                of_clip = [qa for qa in of_clip if qa[0] == QUESTIONS["describe"]]
            question, answer = of_clip[int(rng.integers(len(of_clip)))]
            frames.append(lessons.frames[i])
            asked.append(question)
            told.append(answer)
    return np.stack(frames), asked, told
