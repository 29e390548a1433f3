"""Claims about the online loop, its settings and its guards, on tiny models of the real classes."""

import contextlib
import json
import math
import signal
import socket
import time
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from data.config import ConfigError
from data.counts import Counts, count
from data.policies import CHECKPOINTS, candidates
from generators.core import lora
from generators.core.conditions import chosen
from rl.online.guards import CurvePoint, best, fooled, right, velocity_distance
from rl.online.judging import WeightedJudge, judge_clip
from rl.online.rollouts import Forward, random_step
from rl.training import run as frame
from rl.training import state as resume_state
from rl.training.run import NonFiniteLossError
from rl.training.state import STATE_FILE, ResumeError
from tests.support.children import start
from tests.support.online import (
    LAST_STEPS,
    Answers,
    ColourJudge,
    check_of,
    config,
    load,
    probability,
    prompt_inputs,
    run,
    run_slowly,
)
from tests.support.tiny import load_wan
from tests.support.training import write_base

ROOT = Path(__file__).parents[3]
RED = WeightedJudge(ColourJudge(), 1.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("policies") / "base")


@pytest.fixture
def generator(tiny_wan):
    return load(tiny_wan)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log(home: Path) -> list[dict]:
    return [json.loads(line) for line in (home / "out" / "log.jsonl").read_text().splitlines()]


def described(home: Path) -> dict:
    return json.loads((home / "out" / "policy.json").read_text())


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / lora.LORA_FILE)


# What comes out


@pytest.mark.parametrize("rollout", [{}, LAST_STEPS], ids=["random_step", "last_steps"])
@pytest.mark.ci
def test_the_policy_comes_to_please_the_judge(rollout, generator, base, tmp_path):
    """On full samples, of noise that it was not trained on."""
    before = probability(generator, channel=0)
    run(generator, base, tmp_path, updates=30, checkpoint_every=30, velocity_weight=0.01, **rollout)
    assert probability(generator, channel=0) > before + 0.04
    lines = log(tmp_path)
    assert sum(line["loss"] for line in lines[-10:]) < sum(line["loss"] for line in lines[:10])
    assert sum(line["questions"]["red/red"]["p"] for line in lines[-10:]) > sum(
        line["questions"]["red/red"]["p"] for line in lines[:10]
    )


def test_a_run_leaves_a_policy_folder(generator, base, tmp_path):
    report = run(generator, base, tmp_path)
    assert set(contents(tmp_path / "out")) == {
        "pytorch_lora_weights.safetensors", "policy.json", "log.jsonl", "manifest.json",
        "checkpoints/step-000002/pytorch_lora_weights.safetensors", "checkpoints/step-000002/policy.json",
        "checkpoints/step-000004/pytorch_lora_weights.safetensors", "checkpoints/step-000004/policy.json",
    }  # fmt: skip
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    facts = {"step", "loss", "question_loss", "velocity_distance", "questions", "learning_rate", "gradient_norm"}
    assert all(set(line) == facts for line in lines)
    assert report.last == lines[-1] and (report.kept, report.stopped, report.steps) == (5, None, 5)
    facts = described(tmp_path)
    assert (facts["objective"], facts["start"], facts["recipe"]) == ("online", "base", "test")
    assert (facts["step"], facts["updates"], facts["stopped"]) == (5, 5, None)
    assert (facts["judges"], facts["prompts"]) == ({"red": 1.0}, ["p0", "p1", "p2"])
    assert "sampling" not in facts  # of a start without a shift, and an origin that does not say


def test_a_policy_has_what_belongs_to_the_one_that_it_starts_from_and_no_other_of_its_settings(generator, tmp_path):
    first, kept = write_base(tmp_path / "first"), {"shift": 5.0, "unconditional": "base"}
    (first / "policy.json").write_text(json.dumps({"sampling": {**kept, "steps": 25, "guidance": 5.0}}))
    run(generator, first, tmp_path / "from first", updates=2)
    assert described(tmp_path / "from first")["sampling"] == kept
    checkpoint = tmp_path / "from first/out/checkpoints/step-000002/policy.json"
    assert json.loads(checkpoint.read_text())["sampling"] == kept


@pytest.mark.parametrize("rollout", [{}, LAST_STEPS], ids=["random_step", "last_steps"])
def test_with_the_bases_unconditional_branch_training_and_sampling_agree(rollout, tiny_wan, base, tmp_path):
    """The policy of another run is continued; what it is trained on last is what its folder samples."""
    run(tiny_wan, base, tmp_path / "first", updates=2, guidance=2.0)
    start, sampled = tmp_path / "first/out", {"unconditional": "base"}
    generator = lora.sampling_as(load(tiny_wan), sampled)
    counts = run(generator, start, tmp_path, updates=2, guidance=2.0, **rollout).counts
    assert counts.backwards == 2 * 2 * (2 if rollout else 1) * 2  # of the penalty too; the branch with the prompt alone
    (tmp_path / "out/policy.json").write_text(json.dumps(described(tmp_path) | {"sampling": sampled}))
    sampler = lora.with_own_sampling(load(tiny_wan), tmp_path / "out")
    lora.apply_policy(sampler, tmp_path / "out")

    given, noise = prompt_inputs(1), generator.draw_noise([5], generator.latent_shape)
    how = {"steps": 3, "guidance": 2.0, "solver": "unipc"}
    shown, trained = (one.sample(given.conditions, given.unwanted, noise, **how) for one in (sampler, generator))
    torch.testing.assert_close(shown, trained, atol=1e-5, rtol=1e-5)
    generator.unconditional = None
    other = generator.sample(given.conditions, given.unwanted, noise, **how)
    assert (other - shown).abs().max() > 1e-3


def test_guidance_of_a_range_is_drawn_for_each_update_and_is_that_of_its_clips(tiny_wan, base, tmp_path):
    changes = {"updates": 6, "batch_size": 1, "learning_rate": 1e-12}
    run(tiny_wan, base, tmp_path / "drawn", guidance=[1.5, 3.0], **changes)
    lines = log(tmp_path / "drawn")
    drawn = [line["guidance"] for line in lines]
    assert all(1.5 <= one <= 3 for one in drawn) and len(set(drawn)) == 6
    assert max(drawn) - min(drawn) > 0.3
    for place in (0, 5):
        run(tiny_wan, base, tmp_path / f"{place}", guidance=drawn[place], **changes | {"updates": place + 1})
        assert log(tmp_path / f"{place}")[place]["loss"] == pytest.approx(lines[place]["loss"], rel=1e-6)
    assert "guidance" not in log(tmp_path / "0")[0]


@pytest.mark.ci
def test_early_steps_are_those_of_the_first_half(tiny_wan, base, tmp_path, monkeypatch):
    """Of 5 steps the first three."""
    drawn = {}
    for name in ("all", "first_half"):
        seen: list[int] = []

        def noted(predict, scheduler, process, noise, k, *rest, seen=seen):
            seen.append(k)
            return random_step(predict, scheduler, process, noise, k, *rest)

        monkeypatch.setattr("rl.online.trainer.random_step", noted)
        run(tiny_wan, base, tmp_path / name, step_from=name, steps=5, updates=25, batch_size=1, checkpoint_every=25)
        drawn[name] = set(seen)
    assert drawn == {"all": {0, 1, 2, 3, 4}, "first_half": {0, 1, 2}}


def test_the_policy_and_its_checkpoints_load_in_stock_diffusers(tiny_wan, generator, base, tmp_path):
    run(generator, base, tmp_path, updates=2)
    given = prompt_inputs()
    noise = generator.draw_noise([3], generator.latent_shape)
    settings = {"steps": 2, "guidance": 1.0, "solver": "unipc"}
    expected = generator.sample(chosen(given.conditions, [0]), given.unwanted, noise, **settings)
    pipe = diffusers.WanPipeline.from_pretrained(tiny_wan)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tmp_path / "out")
    size = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 1.0}
    found = pipe(prompt_embeds=given.conditions["text"][:1], latents=noise, output_type="latent", **size).frames
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    sampler = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
    lora.apply_policy(sampler, tmp_path / "out" / CHECKPOINTS / "step-000002")


def test_the_log_says_losses_as_minimised_and_by_question(generator, base, tmp_path):
    """Of two judges with weights 1 and 0.5, by two questions each."""
    judges = [WeightedJudge(ColourJudge("red", 0), 1.0), WeightedJudge(ColourJudge("blue", 2), 0.5)]
    run(generator, base, tmp_path, judges, updates=1)
    line = log(tmp_path)[0]
    losses = {name: answer["loss"] for name, answer in line["questions"].items()}
    assert list(losses) == ["blue/blue", "blue/bright", "red/bright", "red/red"]
    weighted = losses["red/red"] + losses["red/bright"] + 0.5 * (losses["blue/blue"] + losses["blue/bright"])
    assert line["loss"] == pytest.approx(weighted, rel=1e-6)
    assert line["question_loss"] == pytest.approx(sum(losses.values()) / 4, rel=1e-6)
    assert line["velocity_distance"] == 0.0  # the policy still is its reference


def test_a_later_policy_continues_its_start_and_is_compared_with_it(tiny_wan, base, tmp_path):
    run(tiny_wan, base, tmp_path / "one", learning_rate=0.05)
    run(tiny_wan, tmp_path / "one" / "out", tmp_path / "two", updates=1, learning_rate=1e-12)
    assert log(tmp_path / "two")[0]["velocity_distance"] == pytest.approx(0.0, abs=1e-9)
    one, two = adapter(tmp_path / "one" / "out"), adapter(tmp_path / "two" / "out")
    assert all(torch.allclose(one[key], two[key], atol=1e-9) for key in one)


def test_full_fine_tuning_keeps_the_whole_transformer(tiny_wan, generator, base, tmp_path):
    report = run(generator, base, tmp_path, full=True, updates=2, learning_rate=1e-3)
    assert report.parameters == sum(p.numel() for p in generator.component("transformer").parameters())
    sampler = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
    lora.apply_policy(sampler, tmp_path / "out")
    trained, loaded = generator.component("transformer").state_dict(), sampler.component("transformer").state_dict()
    assert all(torch.equal(trained[key], loaded[key]) for key in trained)
    assert log(tmp_path)[1]["velocity_distance"] > 0


def test_a_generator_that_takes_a_first_frame_is_given_its_prompts(tiny_wan_with, base, tmp_path):
    first = torch.randn(3, 2 + 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    folder = tiny_wan_with(in_channels=4 + 2 + 4)
    for name, image in (("one", first), ("other", -first)):
        run(folder, base, tmp_path / name, given=prompt_inputs(image=image), updates=1, guidance=2.0)
    assert log(tmp_path / "one")[0]["loss"] != log(tmp_path / "other")[0]["loss"]


@pytest.mark.parametrize("rollout", [{}, LAST_STEPS], ids=["random_step", "last_steps"])
def test_a_given_latent_frame_is_in_every_judged_clip_as_it_is(rollout, tiny_wan_with, base, tmp_path):
    """The layout of Wan2.2-TI2V-5B, with guidance and renoising: what is decoded begins with the given frame."""
    folder = tiny_wan_with()
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"expand_timesteps": True}))
    given = prompt_inputs(given=torch.randn(3, 4, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    generator, decoded = load(folder), []
    assert generator.time_per_token
    decode = generator.decode_float
    generator.decode_float = lambda latents: decoded.append(latents.detach()) or decode(latents)

    run(generator, base, tmp_path, given=given, updates=2, guidance=2.0, **rollout)

    firsts = {tuple(clip[0, :, :1].flatten().tolist()) for clip in decoded}
    assert len(decoded) == 4  # two clips of either update
    assert firsts <= {tuple(one.flatten().tolist()) for one in given.conditions["given"]} and len(firsts) > 1
    adapters = adapter(tmp_path / "out")
    assert any(tensor.abs().sum() > 0 for name, tensor in adapters.items() if "lora_B" in name)


# Optimisation

FLOAT_ORDER = {"eps": 1e-2}  # Adam divides by the gradient's own size: see tests/rl/training/test_trainer.py


@pytest.mark.parametrize("rollout", [{}, LAST_STEPS], ids=["random_step", "last_steps"])
def test_micro_batches_change_the_adapter_by_float_order_alone(rollout, tiny_wan, base, tmp_path):
    for name, pieces in (("whole", 1), ("split", 3)):
        changes = {"batch_size": 4, "gradient_accumulation": pieces, "updates": 3, **rollout, **FLOAT_ORDER}
        run(tiny_wan, base, tmp_path / name, **changes)
    whole, split = adapter(tmp_path / "whole" / "out"), adapter(tmp_path / "split" / "out")
    assert all(torch.allclose(whole[key], split[key], atol=1e-4) for key in whole)


@pytest.mark.parametrize("rollout", [{}, LAST_STEPS], ids=["random_step", "last_steps"])
def test_gradient_checkpointing_within_the_transformer_changes_nothing(rollout, tiny_wan, base, tmp_path):
    for name, recomputed in (("plain", False), ("recomputed", True)):
        run(tiny_wan, base, tmp_path / name, updates=2, gradient_checkpointing=recomputed, **rollout)
    plain, recomputed = adapter(tmp_path / "plain" / "out"), adapter(tmp_path / "recomputed" / "out")
    assert all(torch.equal(plain[key], recomputed[key]) for key in plain)


def test_bfloat16_autocast_trains(generator, base, tmp_path):
    run(generator, base, tmp_path, updates=2, precision="bf16", **LAST_STEPS)
    assert all(math.isfinite(line["loss"]) for line in log(tmp_path))


def test_the_rate_rises_over_the_warm_up(generator, base, tmp_path):
    run(generator, base, tmp_path, updates=4, warmup_updates=3, learning_rate=0.03)
    assert [line["learning_rate"] for line in log(tmp_path)] == pytest.approx([0.01, 0.02, 0.03, 0.03])


def test_the_penalty_holds_the_policy_near_its_reference(tiny_wan, base, tmp_path):
    for name, weight in (("free", 0.0), ("held", 10.0)):
        run(tiny_wan, base, tmp_path / name, updates=12, velocity_weight=weight, learning_rate=0.01)
    free, held = (log(tmp_path / name)[-1]["velocity_distance"] for name in ("free", "held"))
    assert held < 0.3 * free


def test_fixed_noise_is_a_prompts_own_and_fresh_noise_the_updates(generator, base, tmp_path):
    """One prompt, from pure noise alone, and next to no learning: only the noise can make a difference."""
    still = {"given": prompt_inputs(1), "steps": 1, "learning_rate": 1e-12, "updates": 3, "velocity_weight": 0.0}
    losses = {}
    for noise in ("fixed", "fresh"):
        run(generator if noise == "fixed" else load_again(generator), base, tmp_path / noise, noise=noise, **still)
        losses[noise] = [line["loss"] for line in log(tmp_path / noise)]
    assert losses["fixed"] == pytest.approx([losses["fixed"][0]] * 3, rel=1e-6)
    assert len({round(loss, 5) for loss in losses["fresh"]}) == 3


def load_again(generator):
    """The same generator without its adapter."""
    generator.component("transformer").delete_adapters([lora.POLICY])
    return generator


# Judging a clip


def test_several_judges_of_a_clip_by_hand():
    """Each of 2 latent frames is decoded twice over: frames 0 and 1 are latent 0, frames 2 and 3 are latent 1."""

    class Mean:
        def __init__(self, name, frames, factor):
            self.name, self.frames, self.factor, self.seen = name, frames, factor, []

        def frame_indices(self, num_frames, seed):
            assert num_frames == 4
            return self.frames

        def __call__(self, frames, prompt_id, seed):
            self.seen.append((frames.flatten().tolist(), prompt_id, seed))
            loss = torch.stack([self.factor * frames.sum(), frames[0].sum() ** 2])
            return Answers(("sum", "square"), loss, torch.tensor([0.25, math.nan]))

    decoded = []

    def decode(latents, indices):
        decoded.append(list(indices))
        return latents.flatten()[[index // 2 for index in indices]].view(-1, 1, 1, 1)

    latents = torch.tensor([3.0, 5.0]).view(1, 1, 2, 1, 1)
    first, second = Mean("first", [0, 3, 3], 2.0), Mean("second", [2], 1.0)
    judges = [WeightedJudge(first, 1.0), WeightedJudge(second, 0.5)]
    judged = judge_clip(latents, "p7", judges, [11, 12], decode, 4, scale=0.5)
    assert decoded == [[0, 2, 3]]
    assert first.seen == [([3.0, 5.0, 5.0], "p7", 11)] and second.seen == [([5.0], "p7", 12)]
    # first: 2 (3 + 5 + 5) + 3² = 35; second: 0.5 (5 + 5²) = 15
    assert judged.loss == 50.0
    # latent 0: 2 + 2 · 3 = 8; latent 1: 2 + 2 from the first, 0.5 (1 + 2 · 5) from the second; all halved
    assert judged.gradient.flatten().tolist() == [4.0, 4.75]
    assert [(answer.question, answer.loss) for answer in judged.results] == [
        ("first/sum", 26.0), ("first/square", 9.0), ("second/sum", 5.0), ("second/square", 25.0),
    ]  # fmt: skip
    assert judged.results[0].p_wanted == 0.25 and math.isnan(judged.results[1].p_wanted)


class Diverging(ColourJudge):
    """Not finite from the third clip on, in its second question or, with `gradient`, in its gradient alone."""

    def __init__(self, gradient: bool = False) -> None:
        super().__init__("diverging")
        self.calls, self.gradient = 0, gradient

    def __call__(self, frames, prompt_id, seed):
        self.calls += 1
        answers = super().__call__(frames, prompt_id, seed)
        if self.calls <= 4:
            return answers
        if self.gradient:  # sqrt has no gradient at 0
            return answers._replace(loss=answers.loss + (0 * frames.sum()).sqrt())
        return answers._replace(loss=answers.loss * torch.tensor([1.0, math.nan]))


def test_a_loss_that_is_not_finite_stops_before_its_update(tiny_wan, base, tmp_path):
    for name, judge, message in (
        ("loss", Diverging(), r"update 3: judge diverging, question bright, prompt p\d: loss nan; not applied"),
        ("gradient", Diverging(gradient=True), r"update 3: judge diverging, .* the gradient of its loss is not finite"),
    ):
        generator, home = load(tiny_wan), tmp_path / name
        with pytest.raises(NonFiniteLossError, match=message + ".*last good checkpoint is .*step-000002"):
            run(generator, base, home, [WeightedJudge(judge, 1.0)])
        assert not (home / "out").exists()
        assert (home / "work" / "policy" / CHECKPOINTS / "step-000002" / lora.LORA_FILE).is_file()
        assert all(
            torch.isfinite(parameter).all()
            for parameter in lora.trainable_parameters(generator.component("transformer"))
        )


def test_a_metric_without_a_probability_has_null_in_the_log(generator, base, tmp_path):
    class Metric(ColourJudge):
        def __call__(self, frames, prompt_id, seed):
            return Answers(("score",), -frames.mean()[None], torch.tensor([math.nan]))

    run(generator, base, tmp_path, [WeightedJudge(Metric(), 1.0)], updates=1)
    assert log(tmp_path)[0]["questions"]["red/score"]["p"] is None


def test_a_prompts_questions_are_its_own(generator, base, tmp_path):
    """Means are over the clips with the question; each prompt has as many clips."""

    class Own(ColourJudge):
        def __call__(self, frames, prompt_id, seed):
            answers = super().__call__(frames, prompt_id, seed)
            number = float(prompt_id[1:])
            return Answers(("all", prompt_id), 0 * answers.loss + number, torch.tensor([0.5, number / 4]))

    run(generator, base, tmp_path, [WeightedJudge(Own(), 1.0)], updates=1, batch_size=6)
    questions = log(tmp_path)[0]["questions"]
    assert {name: answer["p"] for name, answer in questions.items()} == {
        "red/all": 0.5, "red/p0": 0.0, "red/p1": 0.25, "red/p2": 0.5,
    }  # fmt: skip
    assert questions["red/all"]["loss"] == 1.0 and questions["red/p2"]["loss"] == 2.0


# Guards


def test_velocity_distance_by_hand():
    """The policy predicts w z with w = 3 and the reference z; at z = 1 and z = 2, with weight 0.5."""
    w = torch.tensor(3.0, requires_grad=True)
    scale = [w]

    @contextlib.contextmanager
    def reference():
        scale[0] = torch.tensor(1.0)
        yield
        scale[0] = w

    steps = [torch.full((2, 1, 1, 1, 1), value) for value in (1.0, 2.0)]
    forwards = [Forward(z, torch.tensor(500.0), 3 * z, given=0) for z in steps]
    distance = velocity_distance(lambda z, _: scale[0] * z, reference, forwards, 0.5)
    assert distance.tolist() == [10.0, 10.0]  # ((3 - 1)² + (6 - 2)²) / 2 for either clip
    # 0.5 · two clips · d/dw [(w - 1)² (1 + 4) / 2] = 0.5 · 2 · 5 (w - 1)
    assert w.grad.item() == 10.0
    w.grad = None
    assert torch.equal(velocity_distance(lambda z, _: scale[0] * z, reference, forwards, 0.0), distance)
    assert w.grad is None


def test_velocity_distance_leaves_given_frames_out():
    """Two latent frames, the first given: the policy predicts 1000 of it, and 3 z of the other; the reference z."""
    scale = [torch.tensor([1000.0, 3.0]).view(1, 1, 2, 1, 1)]

    @contextlib.contextmanager
    def reference():
        kept, scale[0] = scale[0], torch.ones(1, 1, 2, 1, 1)
        yield
        scale[0] = kept

    z = torch.full((1, 1, 2, 1, 1), 2.0)
    forwards = [Forward(z, torch.tensor(500.0), scale[0] * z, given=1)]
    assert velocity_distance(lambda z, _: scale[0] * z, reference, forwards, 0.0).tolist() == [16.0]  # (6 - 2)²


def test_fooled_is_a_held_out_judge_falling_while_the_training_judge_rises():
    for training, held_out, tolerance, expected in (
        ([0.5, 0.6, 0.7], [0.5, 0.6, 0.4], 0.1, True),  # fell by 0.2 below its best, while the other rose by 0.1
        ([0.5, 0.6, 0.7], [0.5, 0.6, 0.5625], 0.0625, False),  # fell, within the tolerance
        ([0.5, 0.6, 0.6], [0.5, 0.6, 0.4], 0.1, False),  # the training judge has not risen since
        ([0.5, 0.6, 0.55], [0.5, 0.6, 0.4], 0.1, False),  # both fell
        ([0.5, 0.6, 0.7], [0.5, 0.4, 0.5], 0.0, False),  # fell and recovered
        ([0.5], [0.5], 0.0, False),
        ([0.5, 0.6], [0.5, 0.4], 0.0, True),  # below its start
    ):
        curve = {10 * i: CurvePoint(*values) for i, values in enumerate(zip(training, held_out, strict=True))}
        assert fooled(curve, tolerance) is expected, (training, held_out)


def test_the_best_point_is_the_held_out_judges_and_the_earliest_of_equals():
    curve = {20: CurvePoint(0.9, 0.5), 0: CurvePoint(0.1, 0.4), 10: CurvePoint(0.2, 0.5), 30: CurvePoint(1.0, 0.3)}
    assert best(curve) == 10


HELD_OUT = {"held_out_every": 2, "updates": 8, "learning_rate": 0.05, "velocity_weight": 0.0}


def scripted(points):
    """A check that returns these points in turn, and the updates of its calls."""
    calls = []

    def check(update):
        assert not torch.is_grad_enabled()
        calls.append(update)
        return points[len(calls) - 1]

    return check, calls


def test_a_fooled_judge_ends_the_run_and_the_best_checkpoint_is_kept(generator, base, tmp_path):
    check, calls = scripted(
        [CurvePoint(0.5, 0.5), CurvePoint(0.6, 0.7), CurvePoint(0.7, 0.65), CurvePoint(0.8, 0.5), CurvePoint(0.9, 0.1)]
    )
    report = run(generator, base, tmp_path, check=check, held_out_tolerance=0.1, **HELD_OUT)
    assert calls == [0, 2, 4, 6]
    assert (report.steps, report.kept) == (6, 2)
    facts = described(tmp_path)
    assert (facts["step"], facts["updates"]) == (2, 6)
    assert facts["stopped"] == report.stopped == "the held-out judge fell while the training judge rose"
    assert {line["step"]: line["held_out"]["held_out"] for line in log(tmp_path) if "held_out" in line} == {
        0: 0.5, 2: 0.7, 4: 0.65, 6: 0.5,
    }  # fmt: skip
    assert log(tmp_path)[-1]["stopped"] == facts["stopped"]
    out = tmp_path / "out"
    assert (out / lora.LORA_FILE).read_bytes() == (out / CHECKPOINTS / "step-000002" / lora.LORA_FILE).read_bytes()
    steps = [candidate.step for candidate in candidates(out)]
    assert steps == [0, 2, 4, 6]


def test_right_is_a_high_score_with_no_answer_wrong_and_the_held_out_judge_agreeing():
    for training, held_out, least, threshold, expected in (
        (0.9, 0.75, 0.625, 0.8, True),
        (0.8, 0.51, 0.5, 0.8, True),
        (0.9, 0.75, None, 0.8, True),  # of several clips
        (0.79, 0.75, 0.625, 0.8, False),
        (0.9, 0.75, 0.4, 0.8, False),  # one answer of several is wrong
        (0.9, 0.5, 0.625, 0.8, False),  # the held-out judge does not say yes
        (0.9, 0.75, 0.625, None, False),  # no such rule
    ):
        point = CurvePoint(training, held_out, least=least)
        assert right(point, threshold, 0.5) is expected, point
    assert right(CurvePoint(0.9, 0.4), 0.8, 0.35) and not right(CurvePoint(0.9, 0.35), 0.8, 0.35)
    assert CurvePoint(**CurvePoint(0.9, 0.7, least=0.6).written()) == CurvePoint(0.9, 0.7, least=0.6)
    assert "least" not in CurvePoint(0.9, 0.7).written()


def test_a_run_ends_at_the_first_check_that_finds_its_answers_right_and_keeps_that_update(generator, base, tmp_path):
    """At update 4. At 2 the held-out judge was surer, and the training judge was not."""
    check, calls = scripted([CurvePoint(0.5, 0.5), CurvePoint(0.6, 0.9), CurvePoint(0.85, 0.6, least=0.7)])
    report = run(generator, base, tmp_path, check=check, held_out_tolerance=1.0, stop_right=0.8, **HELD_OUT)
    assert calls == [0, 2, 4]
    assert (report.steps, report.kept, report.stopped) == (4, 4, "the judges found the answers right")
    assert log(tmp_path)[-1]["held_out"] == {"training": 0.85, "held_out": 0.6, "others": {}, "least": 0.7}
    out = tmp_path / "out"
    assert (out / lora.LORA_FILE).read_bytes() == (out / CHECKPOINTS / "step-000004" / lora.LORA_FILE).read_bytes()


def test_a_run_that_was_never_right_keeps_what_the_held_out_judge_likes_best(generator, base, tmp_path):
    check, _ = scripted([CurvePoint(0.5, 0.5), CurvePoint(0.6, 0.9), *[CurvePoint(0.7, 0.6)] * 3])
    report = run(generator, base, tmp_path, check=check, held_out_tolerance=1.0, stop_right=0.8, **HELD_OUT)
    assert (report.steps, report.kept, report.stopped) == (8, 2, None)


def test_a_start_that_is_right_is_not_trained(generator, base, tmp_path):
    check, calls = scripted([CurvePoint(0.9, 0.9)])
    report = run(generator, base, tmp_path, check=check, stop_right=0.8, **HELD_OUT)
    assert (calls, report.steps, report.kept) == ([0], 0, 0)
    assert [(line["step"], line["stopped"]) for line in log(tmp_path)] == [(0, report.stopped)]
    assert all(not value.any() for key, value in adapter(tmp_path / "out").items() if ".lora_B." in key)


def test_a_check_whose_judges_cannot_say_decides_nothing(generator, base, tmp_path):
    check, calls = scripted([CurvePoint(0.5, 0.5), None, CurvePoint(0.6, 0.7), None, None])
    report = run(generator, base, tmp_path, check=check, stop_right=0.8, **HELD_OUT)
    assert (calls, report.steps, report.kept, report.stopped) == ([0, 2, 4, 6, 8], 8, 4, None)
    assert [line["step"] for line in log(tmp_path) if "held_out" in line] == [0, 4]


def test_a_run_whose_checks_never_say_keeps_its_last_update(generator, base, tmp_path):
    check, _ = scripted([None] * 5)
    assert run(generator, base, tmp_path, check=check, **HELD_OUT).kept == 8


def test_time_that_is_over_ends_a_run_with_a_last_check(generator, base, tmp_path):
    check, calls = scripted([CurvePoint(0.5, 0.5), CurvePoint(0.6, 0.6)])
    report = run(generator, base, tmp_path, check=check, max_seconds=1e-6, **HELD_OUT)
    assert (calls, report.steps, report.kept, report.stopped) == ([0, 1], 1, 1, "1e-06 seconds were over")
    assert run(load(Path(generator.checkpoint.path)), base, tmp_path / "long", updates=2, max_seconds=1e6).steps == 2


def test_a_policy_that_only_got_worse_is_its_start(generator, base, tmp_path):
    check, _ = scripted([CurvePoint(0.5, 0.5), *[CurvePoint(0.4, 0.4)] * 4])
    report = run(generator, base, tmp_path, check=check, **HELD_OUT)
    assert (report.steps, report.kept, report.stopped) == (8, 0, None)
    assert all(not value.any() for key, value in adapter(tmp_path / "out").items() if ".lora_B." in key)


def test_the_last_update_is_checked_and_kept_where_it_is_best(generator, base, tmp_path):
    check, calls = scripted([CurvePoint(0.5, 0.5), CurvePoint(0.6, 0.6), CurvePoint(0.6, 0.7), CurvePoint(0.7, 0.8)])
    report = run(generator, base, tmp_path, check=check, **HELD_OUT | {"updates": 5, "log_every": 5})
    assert calls == [0, 2, 4, 5] and report.kept == 5
    assert [line["step"] for line in log(tmp_path)] == [0, 2, 4, 5]


def test_the_check_samples_the_policy_of_the_moment(generator, base, tmp_path):
    run(generator, base, tmp_path, check=check_of(generator), **HELD_OUT | {"updates": 12, "velocity_weight": 0.01})
    first, *_, last = [line["held_out"] for line in log(tmp_path) if "held_out" in line]
    assert last["training"] > first["training"] and last["others"]["blue"] != first["others"]["blue"]
    assert last["training"] == probability(generator, channel=0)


def test_a_run_stops_when_its_answers_are_good_enough(generator, base, tmp_path):
    report = run(generator, base, tmp_path, stop_below=100.0, log_every=3)
    assert (report.steps, report.kept, report.stopped) == (1, 1, "question_loss fell below 100.0")
    assert [line["step"] for line in log(tmp_path)] == [1]
    assert described(tmp_path)["stopped"] == report.stopped


# What it took


def test_rollouts_judge_calls_and_the_gradient_are_counted(tiny_wan, base, tmp_path):
    """2 updates of 2 clips, each of 3 solver steps, of which 2 are recorded, and 2 questions about it.

    The penalty takes, of each recorded step, a forward of the reference, and one of the policy with its backward.
    Under guidance all are two. What `last_steps` computes again in the backward is not counted.
    """
    clips, steps, recorded = 2 * 2, 3, 2
    for name, guidance, branches in (("plain", 1.0, 1), ("guided", 2.0, 2)):
        counts = run(tiny_wan, base, tmp_path / name, guidance=guidance, updates=2, **LAST_STEPS).counts
        assert counts == Counts(
            clips=clips, judge_calls=2 * clips, decodes=clips,
            forwards=branches * clips * (steps + 2 * recorded), backwards=branches * clips * 2 * recorded,
        )  # fmt: skip


def test_a_run_that_is_killed_and_resumed_counts_both_starts_and_its_checks(tiny_wan, base, tmp_path, monkeypatch):
    """8 updates of 2 clips, and 5 checks, at updates 0, 2, 4, 6 and 8."""

    def train(home):
        def check(update):
            count(Counts(clips=3, judge_calls=5))
            return CurvePoint(update, update)

        return run(load(tiny_wan), base, home, check=check, **HELD_OUT)

    whole = train(tmp_path / "whole").counts
    lines, append = [], frame.append_log

    def killed(*args, **kwargs):
        lines.append(1)
        if len(lines) == 5:
            raise Killed
        return append(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(frame, "append_log", killed)
        with pytest.raises(Killed):
            train(tmp_path / "killed")
    resumed = train(tmp_path / "killed")
    assert 0 < resumed.steps < 8 and resumed.counts == whole
    assert whole.clips == 8 * 2 + 5 * 3 and whole.judge_calls == 8 * 2 * 2 + 5 * 5


# Killed, and started again


def start_child(tiny_wan: Path, base: Path, home: Path, changes: dict, pause: float = 0.0, **environment):
    return start(run_slowly, tiny_wan, base, home, changes, pause, **environment)


def test_killed_and_started_again_it_ends_with_the_same_bytes(tiny_wan, base, tmp_path):
    changes = {"updates": 12, "checkpoint_every": 2}
    run(tiny_wan, base, tmp_path / "whole", **changes)
    child = start_child(tiny_wan, base, tmp_path / "killed", changes, pause=0.1)
    state = tmp_path / "killed" / "work" / STATE_FILE
    while not state.is_file():
        assert child.is_alive(), "ended before it wrote a state"
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (tmp_path / "killed" / "out").exists()
    report = run(tiny_wan, base, tmp_path / "killed", **changes)
    assert report.steps < 12  # it did not start afresh
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")


class Killed(BaseException):
    """Stands for a kill at a chosen line, which a signal cannot be aimed at."""


MOMENTS = (("write_state", 1), ("write_state", 3), ("append_log", 1), ("append_log", 4), ("write_manifest", 1))


@pytest.mark.ci
def test_no_moment_to_be_killed_at_changes_the_bytes(tiny_wan, base, tmp_path, monkeypatch):
    """Of a run that its held-out judge ends at update 4, so that the policy is that of update 2."""

    def train(home):
        generator = load(tiny_wan)
        check = lambda update: CurvePoint(update, -abs(update - 2))  # noqa: E731
        return run(generator, base, home, check=check, held_out_tolerance=1.0, **HELD_OUT)

    train(tmp_path / "whole")
    assert described(tmp_path / "whole")["updates"] == 4
    for moment, call in (*MOMENTS, ("publish", 1)):
        where = resume_state if hasattr(resume_state, moment) else frame
        original, calls = getattr(where, moment), []

        def killed(*args, original=original, calls=calls, call=call, **kwargs):
            calls.append(1)
            if len(calls) == call:
                raise Killed
            return original(*args, **kwargs)

        home = tmp_path / f"{moment}-{call}"
        with monkeypatch.context() as patch:
            patch.setattr(where, moment, killed)
            with pytest.raises(Killed):
                train(home)
        assert train(home).kept == 2, (moment, call)
        assert contents(home / "out") == contents(tmp_path / "whole" / "out"), (moment, call)


def test_resuming_another_configuration_names_the_key_that_differs(tiny_wan, base, tmp_path):
    run(tiny_wan, base, tmp_path / "old", updates=2)
    for changes, key in (
        ({"renoise": "same"}, "config.renoise"),
        ({"given": prompt_inputs(2)}, "prompts"),
        ({"judges": [WeightedJudge(ColourJudge(), 2.0)]}, "judges"),
    ):
        with pytest.raises(ResumeError, match=rf"{key} was .* and is .* now"):
            run(tiny_wan, base, tmp_path / key, resume_from=tmp_path / "old" / "work", **{"updates": 2} | changes)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tiny_wan, base, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        run(tiny_wan, base, tmp_path / name, seed=seed, updates=2, **LAST_STEPS)
    assert contents(tmp_path / "one" / "out") == contents(tmp_path / "two" / "out")
    assert len({(tmp_path / name / "out" / lora.LORA_FILE).read_bytes() for name in ("one", "other")}) == 2


@pytest.mark.ci
def test_two_processes_train_the_adapter_of_one(tiny_wan, base, tmp_path):
    changes = {"updates": 4, "batch_size": 3, "checkpoint_every": 4, **FLOAT_ORDER}
    run(tiny_wan, base, tmp_path / "one", **changes)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        start_child(tiny_wan, base, tmp_path / "two", changes, RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"
    ]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    one, two = adapter(tmp_path / "one" / "out"), adapter(tmp_path / "two" / "out")
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)
    first, second = log(tmp_path / "one")[0], log(tmp_path / "two")[0]
    assert first["questions"].keys() == second["questions"].keys()
    for question, found in first["questions"].items():  # every clip is counted once; sampled in other batches
        assert second["questions"][question] == pytest.approx(found, rel=1e-5)


# Wrong input


def test_a_run_that_cannot_be_is_an_error(generator, base, tmp_path):
    for changes, error in (
        ({"given": prompt_inputs(0)}, "no prompt to train on"),
        ({"judges": []}, r"judges: found \[\]; at least one is needed"),
        ({"judges": [RED, RED]}, r"judges: found \['red', 'red'\]; .* each under a name of its own"),
        ({"judges": [WeightedJudge(ColourJudge(), 0.0)]}, r"judges: found weights {'red': 0\.0}"),
        ({"held_out_every": 2}, "held_out_every is 2, without a held-out judge; both or neither"),
        ({"check": scripted([])[0]}, "held_out_every is None, with a held-out judge; both or neither"),
    ):
        with pytest.raises(ValueError, match=error):
            run(generator, base, tmp_path, **changes)


def test_a_check_or_a_judge_that_says_nothing_is_an_error(generator, base, tmp_path):
    check, _ = scripted([CurvePoint(0.5, math.nan)])
    with pytest.raises(ValueError, match=r"update 0: .*held_out=nan.*did the judges answer on any clip"):
        run(generator, base, tmp_path / "check", check=check, **HELD_OUT)

    class Silent(ColourJudge):
        def __call__(self, frames, prompt_id, seed):
            return Answers((), frames.new_zeros(0), frames.new_zeros(0))

    with pytest.raises(ValueError, match=r"judge red has no question for prompt p\d: leave the prompt out"):
        run(load_again(generator), base, tmp_path / "judge", [WeightedJudge(Silent(), 1.0)])


def test_a_wrong_setting_is_named():
    """Each key's own check, and those of keys together."""
    for changes, error in (
        (
            {"rollout": "some_steps"},
            "engine.rollout is 'some_steps', expected 'random_step', 'last_steps', 'sde' or 'best'",
        ),
        ({"renoise": None}, "engine: renoise must be set for rollout random_step, found None"),
        ({"gradient_steps": 2}, "gradient_steps must be null, being not read by rollout random_step, found 2"),
        (LAST_STEPS | {"gradient_steps": None}, "gradient_steps must be set for rollout last_steps"),
        (LAST_STEPS | {"renoise": "fresh"}, "renoise must be null, being not read by rollout last_steps"),
        (LAST_STEPS | {"gradient_steps": 4}, "gradient_steps must be at most steps (3), found 4"),
        ({"guidance": 0.5}, "engine.guidance: 0.5, expected a number from 1 on"),
        ({"held_out_every": 3}, "held_out_every must be a multiple of checkpoint_every (2)"),
        ({"learning_rate": 0}, "engine.learning_rate is 0, expected greater than 0"),  # of every policy's settings
    ):
        with pytest.raises(ConfigError) as raised:
            config(**changes)
        assert error in str(raised.value), changes
