"""The embedded default's pretraining: the lessons of a judge, and a run of all parts at toy length."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline
from transformers import CLIPModel, CLIPProcessor

from data.config import ConfigError, read_config
from data.prompts import load_prompts
from data.video import sample_frames
from feedback.judges.vlm import build_inputs, sampled_fps
from pipeline.params import load_params
from tabletop.captions import COLORS, Claim, Thing, all_claims, caption, parse
from tabletop.near_misses import near_miss
from tabletop.physics import find_blobs
from tabletop.pretraining.adversaries import Attack, VerdictMargin
from tabletop.pretraining.clip import ClipConfig, all_events, clip_processor, draw_events, pixel_values, tiny_clip
from tabletop.pretraining.denoiser import DenoiserConfig
from tabletop.pretraining.first_frame import FirstFrameConfig
from tabletop.pretraining.judge import (
    FPS,
    Curriculum,
    Encoder,
    JudgeConfig,
    JudgeTraining,
    LessonBatch,
    draw,
    new_judge,
    perturbed,
    video_patches,
)
from tabletop.pretraining.judge_model import qwen_processor, word_level_tokenizer
from tabletop.pretraining.lessons import (
    DESCRIBE,
    FRAMES_SEEN,
    Lessons,
    allowed_claims,
    compared_lessons,
    generated_lessons,
    marked_lessons,
    rendered_lessons,
    verdict_question,
    words,
)
from tabletop.pretraining.measures import COUNT, MeasuresHead, measured
from tabletop.pretraining.optimizer import Muon, MuonAdamW
from tabletop.pretraining.run import Hardening, PretrainConfig, Siblings, VaeConfig, pretrain
from tabletop.questions import event_question
from tabletop.render import render
from tabletop.scenes import FRAMES, SIZE, WORLD, make_scene

PROMPTS = Path("configs/prompt_sets/tabletop.csv")
SHIPPED_CLIP = Path("models/tabletop/clip")
CLIP = ClipConfig(
    clips=2, steps=3, pairs=2, vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=1, projection=16,
    muon_lr=0.02, adam_lr=1e-3, ema=0.9, seed=0,
)  # fmt: skip
RED, BLUE = Thing("red", "cube"), Thing("blue", "ball")
PUSH = Claim("push_right", (RED,))


def judge_config(**changes) -> JudgeConfig:
    """A judge of toy size and schedule."""
    return JudgeConfig(
        **{
            "family": "qwen2_5_vl", "rendered": 24, "marked": 12, "compared": 12, "steps": 6, "batch": 4,
            "questions": 2, "warmup_measuring": 0.2, "warmup_describing": 0.25, "generated_share": 0.5,
            "marked_share": 0.25, "compare_every": 3, "adversary_share": 0.0, "perturbation": 0.0,
            "families": {"verdict": 0.5, "describe": 0.1, "ask": 0.4}, "measuring": 1.0, "patch": 4, "merge": 2,
            "vision_hidden": 32, "vision_layers": 1, "text_hidden": 48, "text_layers": 1, "heads": 2,
            "muon_lr": 0.02, "adam_lr": 1e-3, "ema": 0.9, "seed": 0,
        }
        | changes
    )  # fmt: skip


def pretrain_yaml() -> dict[str, Any]:
    values = load_params(Path("pretrain.yaml"))
    values.pop("trainer")
    return values


def test_the_second_judge_and_its_courses_are_the_judge_with_their_changes():
    values = pretrain_yaml()
    config = read_config(PretrainConfig, values, "pretrain.yaml")
    assert asdict(config.second) == asdict(config.judge) | values["second_judge"]
    assert [asdict(course) for course in config.courses] == [
        asdict(config.second) | changes for changes in values["hardening"]["courses"]
    ]


def test_a_wrong_change_of_a_judge_names_its_key():
    values = pretrain_yaml()
    values["hardening"]["courses"][1]["seeds"] = 3
    with pytest.raises(ConfigError, match=r"hardening.courses\[1\].seeds \(3\) is unknown; known keys are family"):
        read_config(PretrainConfig, values, "pretrain.yaml")


def rl_prompts() -> list[str]:
    return [prompt.prompt for prompt in load_prompts(PROMPTS)]


def test_no_claim_of_an_rl_prompt_is_allowed_in_either_order_of_its_things():
    allowed = allowed_claims(["moving red cube and blue ball closer to each other"])
    assert not any(claim.event == Claim("closer", (BLUE, RED)).event for claim in allowed)
    assert not {caption(claim) for claim in allowed_claims(rl_prompts())} & set(rl_prompts())


def test_some_claim_of_every_kind_of_event_is_allowed():
    assert len({claim.kind for claim in allowed_claims(rl_prompts())}) == 12


def test_no_lesson_from_a_generated_clip_asks_about_an_rl_prompt():
    allowed = allowed_claims(rl_prompts())
    captions = [caption(claim) for claim in allowed[::12]]
    frames = rendered_lessons(len(captions), allowed, seed=0).frames
    lessons = generated_lessons(frames, captions, allowed, seed=0)
    texts = {question for of_clip in lessons.pairs for pairs in of_clip.values() for question, _ in pairs}
    assert verdict_question(captions[0]) in texts
    assert not [prompt for prompt in rl_prompts() if verdict_question(prompt) in texts]
    assert not [prompt for prompt in rl_prompts() if event_question(parse(prompt)) in texts]


def test_a_lesson_gives_the_reason_of_physics_in_words_that_the_judge_has():
    expected = {
        None: "Accept",
        "reverse": "Reject because moves the wrong way",
        "static": "Reject because stops too soon",
        "wrong_shape": "Reject because wrong shape (ball|cone)",
        "vanish": "Reject because vanishes",
        "duplicate": "Reject because two of them",
    }
    for botch, verdict in expected.items():
        clip = render(make_scene(PUSH, np.random.default_rng(0), botch))
        (of_clip,) = generated_lessons(clip[None], [caption(PUSH)], allowed_claims([]), seed=0).pairs
        answers = dict(pair for pairs in of_clip.values() for pair in pairs)
        assert re.fullmatch(verdict, answers[verdict_question(caption(PUSH))]), botch
        assert {word for answer in answers.values() for word in answer.split()} <= set(words()), botch
        if botch is None:
            seen = "(.* and )?red cube( and .*)?"
            assert re.fullmatch(f"{seen} to {seen} because Accept", answers[DESCRIBE])


def test_a_clip_of_an_rl_prompt_is_refused_as_a_lesson():
    clip = np.zeros((1, FRAMES, SIZE, SIZE, 3), np.uint8)
    with pytest.raises(ValueError, match="not among those"):
        generated_lessons(clip, [rl_prompts()[0]], allowed_claims(rl_prompts()), seed=0)


def test_a_rectangle_lesson_is_right_about_where_the_thing_is():
    rng = np.random.default_rng(0)
    clips = np.stack([render(make_scene(PUSH, rng)) for _ in range(30)])
    lessons = marked_lessons(clips, [caption(PUSH)] * len(clips), seed=0)
    answers = [answer.split()[0] for of_clip in lessons.pairs for _, answer in of_clip["inside"]]
    assert len(answers) > 20 and {"Yes", "No"} == set(answers)
    for frames, answer in zip(lessons.frames, answers, strict=True):
        marked = (frames[..., 0] > 200) & (frames[..., 2] > 200) & (frames[..., 1] < 60)  # magenta is no colour here
        red = (frames[..., 0] > 150) & (frames[..., 1] < 90) & (frames[..., 2] < 90)
        for mark, thing in zip(marked, red, strict=True):
            if not mark.any() or not thing.any():
                continue
            rows, columns = np.nonzero(mark)
            y, x = (places.mean() for places in np.nonzero(thing))
            within = rows.min() < y < rows.max() and columns.min() < x < columns.max()
            assert within == (answer == "Yes")


def test_the_question_about_a_pair_of_clips_is_about_the_first():
    vanishing = np.stack([render(make_scene(PUSH, np.random.default_rng(seed), "vanish")) for seed in range(4)])
    lessons = compared_lessons(vanishing, [caption(PUSH)] * 4, allowed_claims([]), seed=0)
    pairs = dict(pair for of_clip in lessons.pairs for pair in of_clip["compare"])
    assert pairs["does anything vanish in the first video"] == "Yes because vanishes"
    assert lessons.reference.shape == lessons.frames.shape
    assert not np.array_equal(lessons.reference[0], lessons.frames[0])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("clips", [1, 2])
def test_questions_that_are_packed_in_training_are_predicted_as_each_alone(family, clips):
    torch.manual_seed(0)
    model, processor = new_judge(judge_config(family=family))
    frames = np.random.default_rng(0).integers(0, 256, (1, clips, FRAMES_SEEN, SIZE, SIZE, 3), np.uint8)
    pairs = [
        ("is there a red cube", "Yes because there is a red cube"),
        ("does anything jump", "No because nothing jumps"),
    ]
    encode = Encoder(model.eval(), processor)

    def predicted(of_clip):
        inputs, lines = encode(LessonBatch(frames, [of_clip]))
        seen = encode.see(torch.as_tensor(frames).float())
        hidden = model.model(**inputs, mm_encoder_outputs={"video": seen}, use_cache=False).last_hidden_state
        return model.lm_head(hidden[lines.rows, lines.places]), lines

    (both, lines), (first, _), (second, alone) = predicted(pairs), predicted(pairs[:1]), predicted(pairs[1:])
    torch.testing.assert_close(both, torch.cat([first, second]), atol=1e-5, rtol=1e-4)
    assert processor.tokenizer.decode(alone.tokens) == "No because nothing jumps <|im_end|>"
    assert alone.first.tolist() == [True, False, False, False, False]
    assert lines.first.sum() == 2


def test_a_perturbed_clip_is_harder_to_judge_and_near_what_it_was():
    weights = torch.randn(8, 1, 2, 8, 8, 3, generator=torch.Generator().manual_seed(0))

    def loss(frames):
        return (frames * weights).sum()

    frames, rng = torch.full(weights.shape, 100.0), np.random.default_rng(0)
    for _ in range(6):  # several sizes of squares
        changed = perturbed(loss, frames, 0.1, rng) - frames
        assert float(changed.abs().max()) <= 1.3 * 0.1 * 255 + 1e-3
        strength = changed.abs().amax((1, 2, 3, 4, 5))
        harder = (changed * weights).sum((1, 2, 3, 4, 5))
        assert (harder[strength > 0] > 0).all() and int((strength > 0).sum()) > 0
    assert torch.equal(perturbed(loss, frames, 0.0, rng), frames)
    assert perturbed(loss, torch.full(weights.shape, 255.0), 0.5, rng).max() <= 255


def test_an_attacked_verdict_is_that_of_the_rubrics_question_offline():
    claims = [Claim("push_right", (RED,)), Claim("closer", (RED, BLUE)), Claim("lift", (BLUE,))]
    texts = [caption(claim) for claim in claims]
    frames = np.stack([render(make_scene(claim, np.random.default_rng(1))) for claim in claims])
    margin_of = VerdictMargin(Path("models/tabletop/second_judge"))
    found = margin_of(torch.from_numpy(frames).float() / 255, texts)
    processor, seen = margin_of.encode.processor, sample_frames(FRAMES, FRAMES_SEEN)
    fps, words = sampled_fps(seen, FPS), processor.tokenizer.get_vocab()
    for clip, text, margin in zip(frames, texts, found, strict=True):
        places = [[index * fps / FPS for index in seen]]
        inputs = build_inputs(processor, [clip[seen]], [verdict_question(text)], [fps], places=places)
        logits = margin_of.model(**inputs).logits[0, -1]
        assert float(margin) == pytest.approx(float(logits[words["Accept"]] - logits[words["Reject"]]), abs=1e-3)


def test_a_near_miss_is_another_event():
    allowed, rng = allowed_claims([]), np.random.default_rng(0)
    claim = Claim("closer", (RED, BLUE))
    assert not any(near_miss(claim, allowed, rng).event == claim.event for _ in range(200))


def test_measures_tell_where_a_thing_is_and_which_shape_it_has():
    for shape, taper, corners in (("cube", False, True), ("ball", False, False), ("cone", True, None)):
        scene = make_scene(Claim("push_right", (Thing("red", shape),)), np.random.default_rng(3))
        measures = measured(find_blobs(render(scene)))
        x, y, *_ = red = measures[:, COLORS.index("red")].T
        (thing,) = (entity for entity in scene.entities if entity.thing.color == "red")
        np.testing.assert_allclose(x * WORLD, thing.x, atol=1)
        np.testing.assert_allclose(y * WORLD, thing.bottom - thing.height / 2, atol=2)
        assert (red[5] > 4 * 0.23).all() == taper, shape
        if corners is not None:
            assert ((red[6] > 0) == corners).all(), shape


def test_the_loss_of_measures_is_small_only_where_each_patch_is_read_in_its_own_token():
    measures = torch.full((1, 2, len(COLORS), COUNT), torch.nan)
    measures[0, 1, 2] = torch.tensor([0.30, 0.80, *[0.5] * (COUNT - 2)])  # in the second frame, of the third colour
    right = torch.zeros(16, 2, len(COLORS) + COUNT)
    right[..., : len(COLORS)] = -20.0
    token = 3 * 4 + 1  # 0.80 * 4 = 3.2 from above, 0.30 * 4 = 1.2 from the left
    right[token, 1] = torch.tensor([-20.0, -20.0, 20.0, -20.0, 0.2, 0.2, *[0.5] * (COUNT - 2)])
    head = MeasuresHead(right[0].numel(), side=4)
    head.norm, head.read = torch.nn.Identity(), torch.nn.Identity()
    assert float(head.loss(right.flatten(1), measures)) == pytest.approx(0, abs=1e-5)
    assert float(head.loss(right.roll(1, 0).flatten(1), measures)) > 1
    right[token, 1, -1] = 0.0
    # one of COUNT measures is 0.5 off: 0.5 - 0.2 / 2
    assert float(head.loss(right.flatten(1), measures)) == pytest.approx(0.4 / COUNT, abs=1e-5)


def test_a_training_that_was_killed_ends_with_the_same_weights(tmp_path):
    config = judge_config(marked_share=0.0, compare_every=None, perturbation=0.05)
    rendered = rendered_lessons(12, allowed_claims([]), seed=0)
    lessons = Lessons(rendered.frames[:, :FRAMES_SEEN], rendered.pairs, measures=rendered.measures[:, :FRAMES_SEEN])

    def training() -> JudgeTraining:
        torch.manual_seed(0)
        return JudgeTraining(config, *new_judge(config))

    def learn(one: JudgeTraining, steps: int) -> JudgeTraining:
        for _ in range(steps):
            one.learn(draw(config, Curriculum(lessons, lessons, None, None), one.step, one.rng))
        return one

    whole = learn(training(), 4)
    learn(training(), 2).save(tmp_path / "state")
    resumed = training()
    resumed.load(tmp_path / "state")
    learn(resumed, 2)
    assert resumed.step == whole.step == 4
    for name, value in whole.learner.state_dict().items():
        assert torch.equal(value, resumed.learner.state_dict()[name]), name
    assert all(map(torch.equal, whole.ema.average, resumed.ema.average))


def test_training_patches_are_those_of_the_judges_own_processor():
    processor = qwen_processor(word_level_tokenizer(words()), patch=4, merge=2, size=SIZE)
    frames = np.random.default_rng(0).integers(0, 256, (3, FRAMES_SEEN, SIZE, SIZE, 3), np.uint8)
    theirs = build_inputs(processor, list(frames), ["judge the video"] * 3, [7.0] * 3)["pixel_values_videos"]
    torch.testing.assert_close(
        video_patches(torch.as_tensor(frames), processor.video_processor), theirs, atol=1e-5, rtol=0
    )


def test_muon_steps_as_torchs_own_does_but_in_float32():
    shapes = [(6, 10), (6, 10), (10, 6), (8, 8)]
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(one.detach().clone()) for one in ours]
    both = Muon(ours, 0.02, weight_decay=0.01), torch.optim.Muon(theirs, 0.02, weight_decay=0.01)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in both:
            optimizer.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)  # of steps of 0.02


def test_muon_moves_a_convolution_through_its_flat_view():
    conv = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    before = conv[0].weight.detach().clone()
    optimizer = MuonAdamW(conv, steps=10, muon_lr=0.02, adam_lr=0.0, blocks=("0",), warmup=1)
    optimizer.step(conv(torch.randn(2, 3, 8, 8)).square().mean())
    change = (conv[0].weight.detach() - before).view(4, -1)
    values = torch.linalg.svdvals(change)
    assert values.min() > 0.5 * values.max()  # Muon's mark: an orthogonal step, all singular values alike


@pytest.fixture(scope="module")
def processor():
    return clip_processor([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])


def similarity(folder: Path) -> Callable[[np.ndarray, list[str]], torch.Tensor]:
    """Cosine of every frame and text, (F, texts), by the stock classes alone."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPProcessor.from_pretrained(folder)

    def similar(frames: np.ndarray, texts: list[str]) -> torch.Tensor:
        with torch.no_grad():
            out = model(**processor(text=texts, images=list(frames), padding=True, return_tensors="pt"))
        return out.image_embeds @ out.text_embeds.T

    return similar


def test_clip_reads_every_caption_whole_between_its_two_marks(processor):
    tokenizer = processor.tokenizer
    for claim in all_claims():
        ids = tokenizer(caption(claim)).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[1:-1]) == caption(claim)
        assert len(ids) <= tokenizer.model_max_length
    assert tokenizer("Lifting purple cube up").input_ids[2] == tokenizer.unk_token_id


def test_clip_pools_a_text_at_its_end_whatever_it_is_padded_to(processor):
    torch.manual_seed(0)
    model = tiny_clip(CLIP, processor.tokenizer).eval()
    short, long = "folding red cloth", "moving red cube and blue ball closer to each other"
    alone = model.get_text_features(**processor.tokenizer([short], return_tensors="pt")).pooler_output
    padded = model.get_text_features(
        **processor.tokenizer([short, long], padding=True, return_tensors="pt")
    ).pooler_output
    torch.testing.assert_close(padded[0], alone[0])
    assert not torch.allclose(padded[1], alone[0], atol=1e-3)


def test_training_pixels_are_those_of_clips_own_processor(processor):
    frames = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    theirs = processor(images=list(frames), return_tensors="pt").pixel_values
    ours = pixel_values(frames, processor.image_processor.image_mean, processor.image_processor.image_std)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_an_event_of_two_things_is_one_event_in_either_order():
    # 12 solids x 7 kinds, 4 cloths x 2 and 4 sponges; 12 x 9 / 2 pairs of solids of two colours x 2 kinds
    assert len(all_events()) == 7 * 12 + 2 * 4 + 4 + 2 * 54


def test_a_batch_holds_each_event_once_and_both_events_of_its_pairs():
    events = all_events()
    drawn = [events[index] for index in draw_events(events, pairs=5, rng=np.random.default_rng(0))]
    of_two = [event for event in drawn if len(event.things) == 2]

    assert len({(event.kind, frozenset(event.things)) for event in drawn}) == len(drawn) == 96 + 2 * 5
    assert {e.things for e in of_two if e.kind == "closer"} == {e.things for e in of_two if e.kind == "apart"}


COLOR_CASES = [
    ("push_right", "red", "cube"), ("lift", "blue", "ball"), ("fall", "green", "cone"), ("take_out", "yellow", "ball"),
    ("uncover", "red", "cone"), ("fold", "green", "cloth"), ("squeeze", "blue", "sponge"), ("drop", "yellow", "cube"),
]  # fmt: skip


def test_the_shipped_clip_finds_a_clip_more_like_its_caption_than_like_that_of_another_color():
    similar = similarity(SHIPPED_CLIP)
    for kind, color, shape in COLOR_CASES:
        claim = Claim(kind, (Thing(color, shape),))
        clip = render(make_scene(claim, np.random.default_rng(7)))
        others = [caption(Claim(kind, (Thing(other, shape),))) for other in COLORS if other != color]
        own, *wrong = similar(clip, [caption(claim), *others]).sum(0).tolist()
        assert own > max(wrong), claim


def test_the_shipped_clip_finds_a_clip_in_which_nothing_happens_less_like_its_caption():
    similar = similarity(SHIPPED_CLIP)
    for kind in ("lift", "fall", "take_out", "uncover"):
        claim = Claim(kind, (RED,))
        honest, static = (
            np.concatenate([render(make_scene(claim, np.random.default_rng(seed), botch)) for seed in range(8)])
            for botch in (None, "static")
        )
        scores = similar(np.concatenate([honest, static]), [caption(claim)]).view(2, -1).sum(1)
        assert scores[0] > scores[1], kind


@pytest.mark.ci
def test_the_whole_pretraining_runs_and_what_it_writes_loads(tmp_path):
    from feedback.core.kinds import make_source
    from generators.core.load import load_generator
    from generators.core.size import VideoSize

    config = PretrainConfig(
        threads=1,
        prompts=str(PROMPTS),
        vae=VaeConfig(base_dim=8, z_dim=4, patch_size=2, steps=2, batch=2, clips=8, seed=0),
        denoiser=DenoiserConfig(
            clips=24,
            botched=0.4,
            steps=10,
            batch=4,
            heads=1,
            layers=1,
            ffn=32,
            text_dim=16,
            tokens=16,
            caption_dropout=0.1,
            shift=2.0,
            muon_lr=0.02,
            adam_lr=1e-3,
            ema=0.9,
            seed=0,
        ),  # fmt: skip
        first_frame_generator=FirstFrameConfig(
            clips=24,
            botched=0.4,
            steps=2,
            batch=4,
            heads=1,
            layers=1,
            text_dim=16,
            time_dim=16,
            tokens=16,
            caption_dropout=0.1,
            muon_lr=0.02,
            adam_lr=1e-3,
            ema=0.9,
            seed=0,
        ),
        siblings=Siblings(
            botched=(0.0, 0.5), rendered=64, steps=2, rate=0.5, clips=12, guidance=(1.0, 2.0), solver_steps=2, seed=0
        ),
        judge=judge_config(),
        second_judge={"family": "qwen3_vl", "seed": 1},
        hardening=Hardening(
            Attack(
                sibling=1, updates=2, batch=3, solver_steps=2, gradient_steps=1, lora_rank=2, learning_rate=1e-3, seed=0
            ),
            ({"steps": 2, "perturbation": 0.1}, {"steps": 2, "perturbation": 0.2, "adversary_share": 0.25}),
        ),
        clip=CLIP,
    )
    pretrain(config, tmp_path / "work", tmp_path / "out")
    size = VideoSize(FRAMES, SIZE, SIZE, fps=8.0)
    generator = load_generator("wan", str(tmp_path / "out/generator"), size, max_prompt_tokens=16)
    told = generator.encode_text([rl_prompts()[0]])
    noise = generator.draw_noise([1], generator.latent_shape)
    clip = generator.decode(generator.sample(told, {"text": told["text"][0]}, noise, 2, 1.0, "euler"))
    assert clip.shape == (1, FRAMES, SIZE, SIZE, 3)
    first_frame = CogVideoXImageToVideoPipeline.from_pretrained(tmp_path / "out/first_frame_generator")
    assert first_frame.vae.config.latents_std == [1.0] * 4
    for folder in ("judge", "second_judge"):
        block = {
            "kind": "qwen", "path": str(tmp_path / "out" / folder), "revision": None, "batch_size": 4,
            "dtype": "float32", "rubric": "tabletop/rubric.yaml",
        }  # fmt: skip
        source = make_source(folder, block)
        assert source.rubric.frames == len(sample_frames(FRAMES, FRAMES_SEEN))
    assert similarity(tmp_path / "out/clip")(clip[0].numpy(), [rl_prompts()[0]]).shape == (FRAMES, 1)
