"""The tabletop's judges: a small Qwen2.5-VL that labels, and a small Qwen3-VL.

Each can be held out where the other is trained on. (The shipped Qwen2.5-VL is older than most of these lessons:
docs/tabletop.md.)

Both learn the same lessons (tabletop/pretraining/lessons.py), from other draws of them: the second is of another
family, of other sizes and of another seed, and shares no weight with the first, so that a clip that fools one need not
fool the other.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from data.config import STRICT, Count, NotNegative, Positive, Probability, WholeNotNegative
from data.video import sample_frames
from feedback.differentiable.packing import pack
from feedback.judges.vlm import build_inputs, positions_of, sampled_fps
from tabletop.pretraining.judge_model import (
    qwen3_processor,
    qwen_processor,
    tiny_qwen3_config,
    tiny_qwen_config,
    word_level_tokenizer,
)
from tabletop.pretraining.lessons import FRAMES_SEEN, Lessons, Pair, words
from tabletop.pretraining.measures import MeasuresHead
from tabletop.pretraining.optimizer import Ema, MuonAdamW
from tabletop.scenes import FRAMES, SIZE

logger = logging.getLogger(__name__)

Family = Literal["qwen2_5_vl", "qwen3_vl"]
FPS = 8.0
LOG_EVERY = 100  # steps
KEEP_EVERY = 200  # steps
SQUARES = (1, 2, 4)  # pixels a side over which a perturbation is the same
SECONDS = [f"<{tenth / 10:.1f}" for tenth in range(21)] + ["seconds>"]  # how Qwen3-VL writes the time of a frame


@dataclass(frozen=True, config=STRICT)
class JudgeConfig:
    """Sizes and schedule of a judge's pretraining."""

    family: Family
    rendered: Count  # clips with the renderer's truth
    marked: Count  # clips with a rectangle, at most
    compared: Count  # pairs of a generated and a rendered clip, at most
    steps: Count
    batch: Count  # clips
    questions: Count  # of a clip in a step, at most
    warmup_measuring: Probability  # part of the steps that only measure: the vision tower alone, a third of the time
    warmup_describing: Probability  # part of the steps that only describe, after that
    generated_share: Probability  # part of a batch from the generator's siblings, after that
    marked_share: Probability  # part of a batch with a rectangle, after that
    compare_every: Count | None  # every so many steps, the step is half a batch of pairs of clips; None: no step
    adversary_share: Probability  # part of a batch from generators trained to fool a judge; of the siblings' part
    perturbation: Probability  # largest change of a pixel, in [0, 1], by which clips are made harder to judge; 0: none
    families: dict[str, NotNegative]  # of questions: how often each is drawn where a clip has it
    measuring: NotNegative  # weight of the loss of physics' measures, which the vision tower learns to tell; 0: none
    patch: Count  # pixels of a vision patch
    merge: Count  # patches merged per side into one token
    vision_hidden: Count
    vision_layers: Count
    text_hidden: Count
    text_layers: Count
    heads: Count
    muon_lr: Positive
    adam_lr: Positive
    ema: Probability
    seed: WholeNotNegative

    def __post_init__(self) -> None:
        if self.adversary_share > self.generated_share:
            raise ValueError(f"adversary_share is {self.adversary_share}, above generated_share {self.generated_share}")
        if self.warmup_measuring > 0 and self.measuring == 0:
            raise ValueError(f"warmup_measuring is {self.warmup_measuring}, and measuring is 0")


class Curriculum(NamedTuple):
    """All lessons of a judge."""

    rendered: Lessons
    generated: Lessons
    marked: Lessons | None  # where marked_share is 0
    compared: Lessons | None  # where compare_every is None
    adversaries: Lessons | None = None  # clips that fooled a judge


class LessonBatch(NamedTuple):
    """The clips and lessons of one step. frames: uint8 (B, V, F, H, W, 3), V clips one after the other."""

    frames: np.ndarray
    pairs: list[list[Pair]]  # of each row; all empty where only measures are learnt
    measures: dict[int, np.ndarray] = {}  # (F, colours, COUNT) of the rows whose first clip has them


def train_judge(
    config: JudgeConfig, curriculum: Curriculum, folder: Path, state: Path | None = None, start: Path | None = None
) -> None:
    """Train a judge, from `start` or from fresh weights, and save it as a folder that the `qwen` source loads.

    state: a file that keeps a training that was killed, which continues from it. It is removed at the end.
    """
    torch.manual_seed(config.seed)
    model, processor = new_judge(config) if start is None else load_judge(start)
    logger.info("judge of %.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    training = JudgeTraining(config, model, processor)
    if state is not None and state.exists():
        training.load(state)
    began, first = time.monotonic(), training.step
    while training.step < config.steps:
        training.learn(draw(config, curriculum, training.step, training.rng))
        if training.step % LOG_EVERY == 0:
            pace = (time.monotonic() - began) / (training.step - first)
            logger.info("judge step %d/%d %s %.2f s a step", training.step, config.steps, training.recent(), pace)
        if state is not None and training.step % KEEP_EVERY == 0:
            training.save(state)
    training.ema.swap()
    model.eval().half().save_pretrained(folder)
    processor.save_pretrained(folder)
    if state is not None:
        state.unlink(missing_ok=True)


class JudgeTraining:
    """A judge in training, and all that the next step depends on."""

    def __init__(self, config: JudgeConfig, model: Any, processor: Any) -> None:
        self.config, self.model = config, model
        self.encode = Encoder(model, processor)
        side = SIZE // config.patch // config.merge
        self.measures = MeasuresHead(model.config.text_config.hidden_size, side)
        self.learner = nn.ModuleDict({"judge": model, "measures": self.measures})
        self.optimizer = MuonAdamW(
            self.learner, config.steps, config.muon_lr, config.adam_lr, ("blocks", "layers", "merger", "patch_embed")
        )
        self.ema = Ema(model.parameters(), config.ema)
        self.rng = np.random.default_rng(config.seed)
        self.step = 0
        self.averages: dict[str, float] = {}  # of losses and hits, over about 50 steps

    def learn(self, batch: LessonBatch) -> None:
        """One optimizer step."""
        frames, asked = torch.as_tensor(batch.frames).float(), any(batch.pairs)
        losses, right = {}, {}
        if asked:
            inputs, lines = self.encode(batch)
            loss_of = partial(_answer_loss, self.model, inputs, lines)
            if self.config.perturbation > 0:
                limit = self.config.perturbation
                frames = perturbed(lambda changed: loss_of(self.encode.see(changed)).loss, frames, limit, self.rng)
        seen = self.encode.see(frames)
        if asked:
            losses["answers"], right["right"] = loss_of(seen)
        if self.config.measuring > 0 and batch.measures:
            losses["measures"] = self._missed(torch.cat(seen.pooler_output), batch)
        weights = {"answers": 1.0, "measures": self.config.measuring}
        self.optimizer.step(sum((weights[name] * loss for name, loss in losses.items()), torch.zeros(())))
        self.ema.update()
        for name, value in ({name: float(loss.detach()) for name, loss in losses.items()} | right).items():
            self.averages[name] = 0.98 * self.averages.get(name, value) + 0.02 * value
        self.step += 1

    def _missed(self, tokens: Tensor, batch: LessonBatch) -> Tensor:
        """The loss of the measures that are read from the tokens of a batch's clips, (tokens, width)."""
        rows = list(batch.measures)
        of_rows = tokens.view(len(batch.frames), -1, tokens.shape[-1])[rows].flatten(0, 1)
        return self.measures.loss(of_rows, torch.from_numpy(np.stack(list(batch.measures.values()))).float())

    def recent(self) -> str:
        """Averages over the last steps."""
        return " ".join(f"{name} {value:.3f}" for name, value in self.averages.items())

    def save(self, path: Path) -> None:
        """Write everything that `load` needs, whole or not at all."""
        whole = {
            "step": self.step, "averages": self.averages, "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(), "ema": (self.ema.average, self.ema.steps),
            "rng": self.rng.bit_generator.state,
        }  # fmt: skip
        beside = path.with_name(path.name + ".new")
        torch.save(whole, beside)
        beside.replace(path)

    def load(self, path: Path) -> None:
        """Continue from what `save` wrote."""
        whole = torch.load(path, weights_only=True)
        self.step, self.averages = whole["step"], whole["averages"]
        self.learner.load_state_dict(whole["learner"])
        self.optimizer.load_state_dict(whole["optimizer"])
        self.ema.average, self.ema.steps = whole["ema"]
        self.rng.bit_generator.state = whole["rng"]
        logger.info("continues from step %d", self.step)


class _Answered(NamedTuple):
    loss: Tensor
    hits: float  # part of the first tokens that is right


def _answer_loss(model: Any, inputs: dict[str, Tensor], lines: "Lines", seen: Any) -> _Answered:
    """The loss of a batch's answers. seen: what its vision tower makes of the frames."""
    out = model.model(**inputs, mm_encoder_outputs={"video": seen}, use_cache=False)
    logits = model.lm_head(out.last_hidden_state[lines.rows, lines.places])
    losses = cross_entropy(logits, lines.tokens, reduction="none")
    hits = (logits.argmax(-1) == lines.tokens)[lines.first]
    # The token that a label is read from counts once more.
    return _Answered(losses.mean() + losses[lines.first].mean(), float(hits.float().mean()))


def perturbed(loss: Callable[[Tensor], Tensor], frames: Tensor, limit: float, rng: np.random.Generator) -> Tensor:
    """The frames, (B, V, F, H, W, 3) in 0 to 255, slightly changed towards a greater loss.

    Goodfellow et al., "Explaining and Harnessing Adversarial Examples" (2015), one step of the gradient's sign. Ours:
    its strength is drawn for each clip, up to `limit` of the pixels' range and 0 for a quarter of them; the gradient is
    averaged over squares of 1, 2 or 4 pixels, since generated clips are smooth; noise of 0.3 of the strength is added.
    The gradient of a judge so trained points to things and places, and less to changes that people do not see.
    """
    frames = frames.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(frames), frames)
    side = SQUARES[int(rng.integers(len(SQUARES)))]
    if side > 1:
        pixels = gradient.flatten(0, 2).permute(0, 3, 1, 2)
        coarse = interpolate(avg_pool2d(pixels, side), scale_factor=side)
        gradient = coarse.permute(0, 2, 3, 1).view_as(frames)
    count = len(frames)
    strength = rng.uniform(0, limit, count) * (rng.random(count) < 0.75) * 255
    noise = torch.from_numpy(rng.uniform(-0.3, 0.3, frames.shape)).float()
    change = torch.from_numpy(strength).float().view(-1, 1, 1, 1, 1, 1) * (gradient.sign() + noise)
    return (frames.detach() + change).clamp(0, 255)


def new_judge(config: JudgeConfig) -> tuple[Any, Any]:
    """A model with fresh weights and its processor."""
    sizes = {
        "patch": config.patch, "merge": config.merge, "vision_hidden": config.vision_hidden,
        "vision_layers": config.vision_layers, "vision_heads": config.heads, "text_hidden": config.text_hidden,
        "text_layers": config.text_layers, "text_heads": config.heads,
    }  # fmt: skip
    if config.family == "qwen2_5_vl":
        tokenizer = word_level_tokenizer(words())
        model = Qwen2_5_VLForConditionalGeneration(tiny_qwen_config(tokenizer, **sizes))
        return model, qwen_processor(tokenizer, config.patch, config.merge, SIZE)
    tokenizer = word_level_tokenizer([*words(), *SECONDS])
    model = Qwen3VLForConditionalGeneration(tiny_qwen3_config(tokenizer, SIZE, **sizes))
    return model, qwen3_processor(tokenizer, config.patch, config.merge, SIZE, FRAMES_SEEN)


def load_judge(folder: Path) -> tuple[Any, Any]:
    """A saved judge in float32, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(folder)


class Lines(NamedTuple):
    """The tokens of a step's answers, and the hidden states that predict them."""

    rows: Tensor  # (M,) of the batch
    places: Tensor  # (M,) in the row
    tokens: Tensor  # (M,) that come next
    first: Tensor  # (M,) bool: whether it is an answer's first


class Encoder:
    """Turns a LessonBatch into a model's inputs: a row for each clip, its questions and answers packed behind it.

    `see` gives what the model makes of the frames.

    The tokens of a question are the processor's, its positions the model's, as if it stood alone.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.cache: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.dummy = np.zeros((FRAMES_SEEN, SIZE, SIZE, 3), np.uint8)
        self.indices = sample_frames(FRAMES, FRAMES_SEEN)

    def __call__(self, batch: LessonBatch) -> tuple[dict[str, Tensor], Lines]:
        tokenizer, clips = self.processor.tokenizer, batch.frames.shape[1]
        packs, lines = [], []
        for row, pairs in enumerate(batch.pairs):
            questions = [self._question(question, clips) for question, _ in pairs]
            answers = [self._ids(answer + " <|im_end|>") for _, answer in pairs]
            both = list(zip(questions, answers, strict=True))
            packed = pack(
                [torch.cat([ids, answer]) for (ids, _), answer in both],
                [torch.cat([at, _counted(at, len(answer))], 1) for (_, at), answer in both],
            )
            packs.append(packed)
            for path, answer in zip(packed.paths, answers, strict=True):
                before = path[len(path) - len(answer) - 1 : -1].tolist()
                for place, (at, token) in enumerate(zip(before, answer.tolist(), strict=True)):
                    lines.append((row, at, token, place == 0))
        length = max(packed.input_ids.shape[1] for packed in packs)
        ids = torch.full((len(packs), length), tokenizer.pad_token_id)
        positions = torch.zeros((3, len(packs), length), dtype=torch.long)
        mask = torch.eye(length, dtype=torch.bool).repeat(len(packs), 1, 1)
        for row, packed in enumerate(packs):
            own = packed.input_ids.shape[1]
            ids[row, :own], positions[:, row, :own] = packed.input_ids[0], packed.position_ids[:, 0]
            visible = torch.ones(own, own, dtype=torch.bool).tril()
            visible[own - packed.mask.shape[2] :] = packed.mask[0, 0]
            mask[row, :own, :own] = visible
        rows, places, tokens, first = zip(*lines, strict=True)
        inputs = {
            "input_ids": ids, "attention_mask": mask[:, None], "position_ids": positions,
        }  # fmt: skip
        return inputs, Lines(torch.tensor(rows), torch.tensor(places), torch.tensor(tokens), torch.tensor(first))

    def see(self, frames: Tensor) -> Any:
        """What the vision tower makes of frames (B, V, F, H, W, 3) in 0 to 255, with gradient: `mm_encoder_outputs`."""
        processor, clips = self.processor.video_processor, frames.flatten(0, 1)
        side = SIZE // processor.patch_size
        grid = torch.tensor([[clips.shape[1] // processor.temporal_patch_size, side, side]] * len(clips))
        return self.model.model.get_video_features(video_patches(clips, processor), grid, return_dict=True)

    def _question(self, text: str, clips: int) -> tuple[Tensor, Tensor]:
        """Ids (T,) and positions (3, T) of one question."""
        if (text, clips) not in self.cache:
            fps = sampled_fps(self.indices, FPS)
            places = [index * fps / FPS for index in self.indices]
            inputs = build_inputs(self.processor, [self.dummy] * clips, [text], [fps] * clips, places=[places] * clips)
            if self.processor.tokenizer.unk_token_id in inputs["input_ids"]:
                raise ValueError(f"the judge's vocabulary lacks a word of {text!r}")
            at = positions_of(self.model, inputs)
            self.cache[text, clips] = inputs["input_ids"][0], at
        return self.cache[text, clips]

    def _ids(self, answer: str) -> Tensor:
        ids = self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if self.processor.tokenizer.unk_token_id in ids:
            raise ValueError(f"the judge's vocabulary lacks a word of {answer!r}")
        return torch.tensor(ids)


def _counted(positions: Tensor, count: int) -> Tensor:
    """(3, count) positions of text that follows."""
    return (int(positions.max()) + 1 + torch.arange(count)).expand(3, count)


def video_patches(frames: Tensor, processor: Any) -> Tensor:
    """The output of Qwen's video processor for (B, T, H, W, 3) frames of its own size in 0 to 255, of a whole batch.

    (B * T/2 * H/p * W/p, 3 * 2 * p * p), p the patch size; in its order of merged patches.
    """
    mean = torch.tensor(processor.image_mean).view(3, 1, 1) * 255
    std = torch.tensor(processor.image_std).view(3, 1, 1) * 255
    x = (frames.permute(0, 1, 4, 2, 3).float() - mean) / std
    b, t, c, h, w = x.shape
    p, m = processor.patch_size, processor.merge_size
    x = x.view(b, t // 2, 2, c, h // p // m, m, p, w // p // m, m, p).permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return x.reshape(b * (t // 2) * (h // p) * (w // p), c * 2 * p * p)


def draw(config: JudgeConfig, curriculum: Curriculum, step: int, rng: np.random.Generator) -> LessonBatch:
    """The batch of a step.

    First measures alone, then descriptions alone, then everything, pairs of clips in steps of their own.
    """
    describing = (config.warmup_measuring + config.warmup_describing) * config.steps
    if measuring := step < config.warmup_measuring * config.steps:
        generated = round(config.generated_share * config.batch)
        parts = [
            (curriculum.generated, generated, config.families),
            (curriculum.rendered, config.batch - generated, config.families),
        ]
    elif step < describing:
        parts = [(curriculum.rendered, config.batch, {"describe": 1.0})]
    elif config.compare_every and step % config.compare_every == 0:
        parts = [(_needed(curriculum.compared, "compare_every"), config.batch // 2, {"compare": 1.0})]
    else:
        shares = (config.generated_share, config.marked_share, config.adversary_share)
        generated, marked, adversaries = (round(share * config.batch) for share in shares)
        parts = [
            (curriculum.generated, generated - adversaries, config.families),
            (curriculum.rendered, config.batch - generated - marked, config.families),
        ]
        if marked:
            parts.append((_needed(curriculum.marked, "marked_share"), marked, {"inside": 1.0}))
        if adversaries:
            parts.append((_needed(curriculum.adversaries, "adversary_share"), adversaries, config.families))
    frames: list[np.ndarray] = []
    pairs: list[list[Pair]] = []
    measures: dict[int, np.ndarray] = {}
    for lessons, count, families in parts:
        for _ in range(count):
            index, of_clip = _draw_pairs(lessons, config.questions, families, rng)
            of_row = [lessons.frames[index]]
            if lessons.measures is not None:
                measures[len(frames)] = lessons.measures[index]
            frames.append(np.stack(of_row if lessons.reference is None else [*of_row, lessons.reference[index]]))
            pairs.append(of_clip)
    return LessonBatch(np.stack(frames), [[]] * len(pairs) if measuring else pairs, measures)


def _needed(lessons: Lessons | None, key: str) -> Lessons:
    if lessons is None:
        raise ValueError(f"{key} is set, and there are no such lessons")
    return lessons


def _draw_pairs(
    lessons: Lessons, count: int, families: Mapping[str, float], rng: np.random.Generator
) -> tuple[int, list[Pair]]:
    """A clip that has pairs of these families, and up to `count` of its pairs with different questions."""
    while True:
        index = int(rng.integers(len(lessons)))
        of_clip = {name: lessons.pairs[index][name] for name in families if lessons.pairs[index].get(name)}
        if not of_clip:
            continue
        weights = np.array([families[name] for name in of_clip])
        picked: dict[str, Pair] = {}
        for name in rng.choice(list(of_clip), count, p=weights / weights.sum()):
            pair = of_clip[name][int(rng.integers(len(of_clip[name])))]
            picked[pair[0]] = pair
        return index, list(picked.values())
