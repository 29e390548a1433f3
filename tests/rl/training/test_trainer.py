"""Claims about the training loop, on tiny models of the real classes."""

import json
import math
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cluster import devices, provenance
from cluster.provenance import made_with
from commands.preset import layers, overlay, values_of
from data.config import ConfigError
from data.counts import Counts
from data.policies import CHECKPOINTS, previews_in
from data.records import DensePair, Pair, Weighted
from data.store import ClipSet, ClipSetWriter, PromptConditions, encode_clips
from generators.core import lora
from rl.objectives import OBJECTIVES, get_objective
from rl.training import run as frame
from rl.training import state as resume_state
from rl.training.batches import ClipReader, draw, rows_of_step
from rl.training.config import configure
from rl.training.policies import make_optimizer
from rl.training.run import NonFiniteLossError
from rl.training.state import STATE_FILE, ResumeError
from rl.training.timesteps import Uniform
from rl.training.trainer import learning_rate, train
from tests.support.children import start
from tests.support.defaults import default_params
from tests.support.group import Run, run_together
from tests.support.tiny import load_wan
from tests.support.training import (
    CONFIG,
    DPO,
    LATENT_SHAPE,
    NFT,
    OWN,
    config,
    rows,
    run,
    run_slowly,
    write_base,
    write_clip_set,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def clip_set(tmp_path_factory):
    return write_clip_set(tmp_path_factory.mktemp("clips") / "samples")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("policies") / "base")


@pytest.fixture
def generator(tiny_wan):
    return load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def log(home: Path) -> list[dict]:
    return [json.loads(line) for line in (home / "out" / "log.jsonl").read_text().splitlines()]


def adapter(home: Path) -> dict[str, torch.Tensor]:
    return load_file(home / "out" / lora.LORA_FILE)


def predicted_batches(generator) -> list[tuple[torch.Tensor, ...]]:
    """The arguments of every `predict` from now on, as it is called."""
    calls, predict = [], generator.predict

    def spy(latents, t, conditions):
        calls.append((latents, t, conditions))
        return predict(latents, t, conditions)

    generator.predict = spy
    return calls


# What comes out


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_a_policy_folder(objective, generator, clip_set, base, tmp_path):
    report = run(objective, generator, clip_set, base, tmp_path)
    files = set(contents(tmp_path / "out"))
    assert files == {
        "pytorch_lora_weights.safetensors", "policy.json", "log.jsonl", "manifest.json",
        "checkpoints/step-000002/pytorch_lora_weights.safetensors", "checkpoints/step-000002/policy.json",
        "checkpoints/step-000004/pytorch_lora_weights.safetensors", "checkpoints/step-000004/policy.json",
    }  # fmt: skip
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    facts = {"step", "loss", "learning_rate", "gradient_norm", *OBJECTIVES[objective].facts}
    assert all(set(line) == facts for line in lines)
    assert report.last == lines[-1] and report.clips_per_step == (8 if "dpo" in objective else 4)
    assert any(value.abs().max() > 0 for key, value in adapter(tmp_path).items() if ".lora_B." in key)


def test_policy_json_says_what_the_policy_was_made_from(generator, clip_set, base, tmp_path):
    run("dpo", generator, clip_set, base, tmp_path)
    facts = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert (facts["objective"], facts["start"], facts["set"], facts["rows"]) == ("dpo", "base", "r1", 4)
    assert facts["clip_sets"] == [clip_set.fingerprint()] and facts["config"]["beta"] == 100.0


def test_policy_json_says_what_the_policy_and_its_checkpoints_were_made_with(generator, clip_set, base, tmp_path):
    run("sft", generator, clip_set, base, tmp_path)
    for folder in (tmp_path / "out", tmp_path / "out" / CHECKPOINTS / "step-000002"):
        (entry,) = json.loads((folder / "policy.json").read_text())["made_with"]
        assert entry == {"from_step": 0, **made_with(generator.device)}


def test_a_policy_names_the_generator_that_its_start_was_made_of(tiny_wan, clip_set, tmp_path):
    of = {"family": "wan", "path": "models/tiny", "revision": None, "fingerprint": "0f"}
    (tmp_path / "base").mkdir()
    (tmp_path / "base/policy.json").write_text(json.dumps(of))
    run("rwr", tiny_wan, clip_set, tmp_path / "base", tmp_path / "rwr1")
    run("rwr", tiny_wan, clip_set, tmp_path / "rwr1/out", tmp_path / "rwr2")
    for name in ("rwr1", "rwr2"):
        assert json.loads((tmp_path / name / "out/policy.json").read_text())["generator"] == of


def test_a_trained_policy_and_its_checkpoints_are_policies_to_sample_from(tiny_wan, clip_set, base, tmp_path):
    run("sft", tiny_wan, clip_set, base, tmp_path)
    for folder in (tmp_path / "out", tmp_path / "out" / CHECKPOINTS / "step-000002"):
        sampler = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
        before = sampler.component("transformer").blocks[0].attn1.to_q.weight.clone()
        lora.apply_policy(sampler, folder)
        assert not torch.equal(sampler.component("transformer").blocks[0].attn1.to_q.weight, before)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(objective, tiny_wan, clip_set, base, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        run(objective, tiny_wan, clip_set, base, tmp_path / name, seed=seed, steps=2)
    assert contents(tmp_path / "one" / "out") == contents(tmp_path / "two" / "out")
    weights = (tmp_path / name / "out" / lora.LORA_FILE for name in ("one", "other"))
    assert len({path.read_bytes() for path in weights}) == 2


def test_training_lowers_the_error(generator, clip_set, base, tmp_path):
    run("sft", generator, clip_set, base, tmp_path, steps=60, checkpoint_every=60)
    losses = [line["loss"] for line in log(tmp_path)]
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])


def test_dpo_comes_to_prefer_the_chosen_clips(generator, clip_set, base, tmp_path):
    run("dpo", generator, clip_set, base, tmp_path, steps=40, checkpoint_every=40)
    last = log(tmp_path)[-10:]
    assert sum(line["implicit_reward_accuracy"] for line in last) / 10 > 0.8
    assert all(line["implicit_reward_margin"] > 0 for line in last)


# What a step sees


def test_the_first_dpo_step_finds_policy_and_reference_equal(generator, clip_set, base, tmp_path):
    run("dpo", generator, clip_set, base, tmp_path, steps=1)
    first = log(tmp_path)[0]
    assert first["loss"] == pytest.approx(0.693147, rel=1e-6)
    assert (first["implicit_reward_margin"], first["implicit_reward_accuracy"]) == (0.0, 0.5)


def test_a_later_round_starts_from_its_start_and_is_compared_with_it(tiny_wan, clip_set, base, tmp_path):
    run("rwr", tiny_wan, clip_set, base, tmp_path / "rwr1")
    run("dpo", tiny_wan, clip_set, tmp_path / "rwr1" / "out", tmp_path / "dpo2", steps=1, learning_rate=1e-12)
    assert log(tmp_path / "dpo2")[0]["implicit_reward_margin"] == 0.0
    first, second = adapter(tmp_path / "rwr1"), adapter(tmp_path / "dpo2")
    assert all(torch.allclose(first[key], second[key], atol=1e-9) for key in first)


def test_chosen_and_rejected_share_noise_timestep_and_caption(generator, clip_set, base, tmp_path):
    calls = predicted_batches(generator)
    run("dpo", generator, clip_set, base, tmp_path, steps=1, caption_dropout=0.5)
    (latents, t, conditions), policy_call = calls[0], calls[1]
    text = conditions["text"]
    assert torch.equal(latents, policy_call[0])  # the reference sees what the policy sees
    pairs = [rows("dpo", clip_set)[row] for row in rows_of_step(0, 4, 4, seed=1)]
    clean = clip_set.latents([p.chosen for p in pairs] + [p.rejected for p in pairs])
    noise = (latents - (1 - t.view(-1, 1, 1, 1, 1)) * clean) / t.view(-1, 1, 1, 1, 1)
    assert torch.equal(t[:4], t[4:]) and torch.equal(text[:4], text[4:])
    torch.testing.assert_close(noise[:4], noise[4:], atol=1e-4, rtol=1e-4)


def test_a_dpo_step_is_two_batched_forwards_of_which_one_has_a_graph(generator, clip_set, base, tmp_path):
    forwards, predict = [], generator.predict
    generator.predict = lambda *args: forwards.append((len(args[0]), torch.is_grad_enabled())) or predict(*args)
    run("dpo", generator, clip_set, base, tmp_path, steps=1)
    assert forwards == [(8, False), (8, True)]  # four chosen and four rejected clips, reference before policy


def test_caption_dropout_trains_the_empty_caption(generator, clip_set, base, tmp_path):
    calls = predicted_batches(generator)
    run("sft", generator, clip_set, base, tmp_path, steps=1, caption_dropout=1.0)
    assert all(torch.equal(text, clip_set.empty["text"]) for text in calls[0][2]["text"])


def test_caption_dropout_trains_the_negative_prompt_where_the_config_says_so(generator, clip_set, base, tmp_path):
    negative = write_clip_set(tmp_path / "clips", negative_prompt=True)
    calls = predicted_batches(generator)
    changes = {"steps": 1, "caption_dropout": 1.0, "dropped_caption": "negative"}
    run("sft", generator, negative, base, tmp_path / "home", **changes)
    assert all(torch.equal(text, torch.full((6, 16), -0.5)) for text in calls[0][2]["text"])
    with pytest.raises(ValueError, match="was sampled without a negative prompt"):
        run("sft", generator, clip_set, base, tmp_path / "without", **changes)
    dropped = torch.tensor([True])
    told = ClipReader([negative], "empty").read(["p0-0"], dropped).conditions
    assert torch.equal(told["text"][0], negative.empty["text"])


def test_errors_are_asked_at_the_embedded_guidance_of_the_clips_unless_forced(base, tmp_path, tiny_wan):
    generator, again = (load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",)) for _ in range(2))
    clips = write_clip_set(tmp_path / "clips", facts={"embedded_guidance": 6.0})
    with pytest.raises(ValueError, match="sampled at embedded_guidance 6.0, and generator.embedded_guidance is None"):
        run("sft", generator, clips, base, tmp_path / "refused", steps=1)
    run("sft", generator, clips, base, tmp_path / "forced", steps=1, force_embedded_guidance=True)
    again.embedded_guidance = 6.0
    run("sft", again, clips, base, tmp_path / "equal", steps=1)


def test_given_frames_are_left_out_of_the_error(base, tmp_path, generator):
    """Of 3 latent frames one is given: its prediction is off by 1000, those of the others by 1 and by 3."""
    given = write_clip_set(tmp_path / "clips", more={"given": torch.zeros(4, 1, 4, 4)})
    off = torch.tensor([1000.0, 1.0, 3.0]).view(1, 1, 3, 1, 1)
    clean, predict = [], generator.predict

    def predicted(latents, t, conditions):
        """The target, which is noise - clean = (latents - clean) / t, and what it is off by; with a graph."""
        target = (latents - torch.cat(clean)) / t.view(-1, 1, 1, 1, 1)
        return target + off + 0 * predict(latents, t, conditions)

    generator.predict = predicted
    order = rows_of_step(0, 4, 8, seed=1)
    table = [Weighted(sample.sample_id, sample.prompt_id, 1.0, 1.0) for sample in given.samples]
    clean += [given.latents([table[row].sample_id]) for row in order]
    run("rwr", generator, given, base, tmp_path / "home", table=table, steps=1, caption_dropout=0.0)
    # (1² + 3²) / 2 = 5 for each clip; a mean over all three frames would be far above 10⁵
    assert log(tmp_path / "home")[0]["loss"] == pytest.approx(5, rel=1e-3)


def test_draws_stay_in_the_range_that_is_trained():
    low = draw(1, 0, range(50), (1,), Uniform(), 0.0, lambda t: t.item() < 0.3).t
    high = draw(1, 0, range(50), (1,), Uniform(), 0.0, lambda t: t.item() >= 0.3).t
    assert low.max() <= 0.3 <= high.min()
    # Those that lie in the range at once are what they are without one.
    free = draw(1, 0, range(50), (1,), Uniform(), 0.0).t
    assert torch.equal(low[free <= 0.3], free[free <= 0.3]) and (free <= 0.3).any()
    with pytest.raises(ValueError, match="gave no t of a denoiser that is trained"):
        draw(1, 0, [0], (1,), Uniform(), 0.0, lambda t: False)


def test_clips_of_weight_zero_are_not_run_and_still_count_in_the_mean(generator, clip_set, base, tmp_path):
    """Of a batch of all eight clips, four have weight 1: the loss is half of theirs alone."""
    calls = predicted_batches(generator)
    run("rwr", generator, clip_set, base, tmp_path, steps=1, batch_size=8, caption_dropout=0.0)
    latents, t, conditions = calls[0]
    assert len(latents) == 4
    table = rows("rwr", clip_set)
    order = rows_of_step(0, 8, 8, seed=1)
    places = [place for place in range(8) if table[order[place]].weight]
    draws = draw(1, 0, places, LATENT_SHAPE, Uniform(), 0.0)
    clean = clip_set.latents([table[order[place]].sample_id for place in places])
    with torch.no_grad():
        generator.component("transformer").disable_adapters()
        prediction = generator.predict(latents, t, conditions)
    errors = ((prediction - (draws.noise - clean)) ** 2).mean((1, 2, 3, 4))
    assert log(tmp_path)[0]["loss"] == pytest.approx(errors.sum().item() / 8, rel=1e-5)


def test_a_batch_without_any_weight_moves_nothing(generator, clip_set, base, tmp_path):
    table = [Weighted(s.sample_id, s.prompt_id, 0.0, 0.0) for s in clip_set.samples[:7]]
    table.append(Weighted(clip_set.samples[7].sample_id, "p1", 1.0, 1.0))
    run("rwr", generator, clip_set, base, tmp_path, table=table, steps=2, batch_size=4)
    assert sorted(line["gradient_norm"] > 0 for line in log(tmp_path)) == [False, True]


def test_every_pass_visits_every_row_once():
    visited = [row for step in range(5) for row in rows_of_step(step, 4, 10, seed=3)]
    assert sorted(visited[:10]) == sorted(visited[10:]) == list(range(10))
    assert visited[:10] != visited[10:]


def test_draws_depend_on_the_place_in_the_batch_alone():
    together = draw(1, 7, range(6), LATENT_SHAPE, Uniform(), 0.5)
    apart = [draw(1, 7, [place], LATENT_SHAPE, Uniform(), 0.5) for place in range(6)]
    for index, values in enumerate(together):
        assert torch.equal(values, torch.cat([one[index] for one in apart]))
    assert not torch.equal(together.noise, draw(1, 8, range(6), LATENT_SHAPE, Uniform(), 0.5).noise)


def test_draws_of_seeds_that_differ_in_their_high_bits_differ():
    one, other = (draw(seed, 0, [0], LATENT_SHAPE, Uniform(), 0.5) for seed in (5, 5 + 2**32))
    assert not torch.equal(one.noise, other.noise) and one.t != other.t


def test_nft_and_kto_run_rejected_clips_too(tiny_wan, clip_set, base, tmp_path):
    """Of a batch of all eight clips, whose rejected half has weight 0 under RWR."""
    for objective in ("nft", "kto"):
        generator = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
        calls = predicted_batches(generator)
        run(objective, generator, clip_set, base, tmp_path / objective, steps=1, batch_size=8)
        assert [len(latents) for latents, _, _ in calls] == [8, 8], objective  # reference, then policy


def test_the_first_nft_step_has_the_error_over_beta_as_its_loss(generator, clip_set, base, tmp_path):
    run("nft", generator, clip_set, base, tmp_path, steps=1, beta=0.5)
    first = log(tmp_path)[0]
    assert first["loss"] == pytest.approx(2 * first["error"], rel=1e-5) and first["error"] == first["reference_error"]
    assert first["wanted_error_change"] == 0.0


def test_nft_and_kto_move_toward_accepted_clips_and_away_from_rejected(tiny_wan, clip_set, base, tmp_path):
    longer = {"steps": 40, "checkpoint_every": 40}
    run("nft", tiny_wan, clip_set, base, tmp_path / "nft", **longer)
    run("kto", tiny_wan, clip_set, base, tmp_path / "kto", **longer)

    def mean(objective: str, fact: str) -> float:
        values = [line[fact] for line in log(tmp_path / objective)[-10:] if line[fact] is not None]
        return sum(values) / len(values)

    assert mean("nft", "wanted_error_change") < mean("nft", "unwanted_error_change")
    assert mean("kto", "gain_accepted") > mean("kto", "gain_rejected")


def test_a_fact_of_accepted_clips_is_null_in_a_batch_without_one(generator, clip_set, base, tmp_path):
    table = [Weighted(s.sample_id, s.prompt_id, 0.0, 1.0) for s in clip_set.samples]
    run("kto", generator, clip_set, base, tmp_path, table=table, steps=1)
    first = log(tmp_path)[0]
    assert (first["gain_accepted"], first["accepted_error"], first["gain_rejected"]) == (None, None, 0.0)


def test_a_policy_that_unlearns_wanted_clips_is_named_once(tiny_wan, clip_set, base, tmp_path, caplog):
    """KTO at a beta and rate far too large, and the same run at a rate that moves nothing."""
    collapsing = {
        "steps": 30,
        "checkpoint_every": 30,
        "beta": 1.0,
        "learning_rate": 0.3,
        "warmup_steps": 0,
        "full": True,
    }
    run("kto", tiny_wan, clip_set, base, tmp_path / "collapses", **collapsing)
    warned = [record.getMessage() for record in caplog.records if "collapses" in record.getMessage()]
    assert len(warned) == 1 and warned[0].startswith("kto: at step "), warned
    caplog.clear()
    run("kto", tiny_wan, clip_set, base, tmp_path / "stays", **collapsing | {"learning_rate": 1e-9})
    assert "collapses" not in caplog.text


def test_dense_dpo_prefers_the_better_clip_in_each_latent_frame(generator, clip_set, base, tmp_path):
    """The loss begins at log 2, whatever the preferences, and falls below it in the frames that have one."""
    run("dense_dpo", generator, clip_set, base, tmp_path, steps=40, checkpoint_every=40)
    first, last = log(tmp_path)[0], log(tmp_path)[-5:]
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5) and first["implicit_reward_accuracy"] == 0.5
    assert sum(line["implicit_reward_margin"] for line in last) > 0 and sum(
        line["loss"] for line in last
    ) < 5 * math.log(2)


def test_dense_dpo_over_swapped_pairs_with_negated_preferences_trains_the_same_adapter(
    tiny_wan, clip_set, base, tmp_path
):
    table = rows("dense_dpo", clip_set)
    swapped = [DensePair(row.prompt_id, row.second, row.first, [-one for one in row.better]) for row in table]
    for name, pairs in (("one", table), ("other", swapped)):
        run("dense_dpo", tiny_wan, clip_set, base, tmp_path / name, table=pairs, **FLOAT_ORDER)
    one, other = adapter(tmp_path / "one"), adapter(tmp_path / "other")
    assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)


# Optimisation

# Adam divides by the gradient's own size: at its usual eps an element whose gradient is mere rounding steps anywhere.
# At 1e-2 another order of sums moves an element by less than 2e-6, where training moves it by 0.01.
FLOAT_ORDER = {"eps": 1e-2}


def test_micro_batches_change_the_adapter_by_float_order_alone(tiny_wan, clip_set, base, tmp_path):
    for name, pieces in (("whole", 1), ("split", 3)):
        run("dpo", tiny_wan, clip_set, base, tmp_path / name, gradient_accumulation=pieces, **FLOAT_ORDER)
    whole, split = adapter(tmp_path / "whole"), adapter(tmp_path / "split")
    assert all(torch.allclose(whole[key], split[key], atol=1e-5) for key in whole)


def test_the_reference_point_of_kto_is_of_the_whole_batch_however_it_is_split(tiny_wan, clip_set, base, tmp_path):
    """One forward of 4 rows, two of 2, and three: a pass without gradient comes first, which knows the reference."""
    for name, pieces in (("whole", 1), ("halves", 2), ("thirds", 3)):
        generator, forwards = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",)), []
        predict = generator.predict
        generator.predict = lambda *args, predict=predict, seen=forwards: (
            seen.append((len(args[0]), torch.is_grad_enabled())) or predict(*args)
        )
        # With seed 2 the mean gain is above 0 after some steps, so that the reference point is.
        run("kto", generator, clip_set, base, tmp_path / name, gradient_accumulation=pieces, seed=2, **FLOAT_ORDER)
        if name == "whole":
            assert forwards[:2] == [(4, False), (4, True)]  # reference, policy
        if name == "halves":  # of each half reference and policy, then each half with a graph
            assert forwards[:6] == [(2, False)] * 4 + [(2, True)] * 2
    whole = log(tmp_path / "whole")
    assert any(line["reference_point"] > 0 for line in whole)
    for name in ("halves", "thirds"):
        one, other = adapter(tmp_path / "whole"), adapter(tmp_path / name)
        assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)
        points = [line["reference_point"] for line in log(tmp_path / name)]
        assert points == pytest.approx([line["reference_point"] for line in whole], rel=1e-4, abs=1e-7)


def test_gradient_checkpointing_recomputes_and_changes_nothing(generator, tiny_wan, clip_set, base, tmp_path):
    run("sft", tiny_wan, clip_set, base, tmp_path / "plain")
    calls = []
    generator.component("transformer").blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    run("sft", generator, clip_set, base, tmp_path / "recomputed", gradient_checkpointing=True)
    assert len(calls) == 2 * 5  # once forward and once backward a step
    plain, recomputed = adapter(tmp_path / "plain"), adapter(tmp_path / "recomputed")
    assert all(torch.allclose(plain[key], recomputed[key], atol=1e-6) for key in plain)


def test_bfloat16_autocast_trains(generator, clip_set, base, tmp_path):
    run("dpo", generator, clip_set, base, tmp_path, precision="bf16")
    assert all(torch.isfinite(value).all() and value.dtype == torch.float32 for value in adapter(tmp_path).values())


@pytest.mark.parametrize("wanted", [True, False])
def test_an_accelerator_adds_in_a_fixed_order_where_it_is_wanted(
    wanted, generator, clip_set, base, tmp_path, monkeypatch
):
    found, on_cpu = [], devices.deterministic

    def as_on_a_gpu(device, on):
        assert device.type == "cpu"
        found.append(on)
        return on_cpu(torch.device("cuda"), on)

    monkeypatch.setattr(devices, "deterministic", as_on_a_gpu)
    modes = []
    generator.denoisers["transformer"].register_forward_pre_hook(
        lambda *_: modes.append(torch.are_deterministic_algorithms_enabled())
    )
    run("sft", generator, clip_set, base, tmp_path, deterministic=wanted)
    assert found == [wanted] and set(modes) == {wanted}
    assert not torch.are_deterministic_algorithms_enabled()


def test_learning_rate_by_hand():
    """Warm-up over 4 of 12 steps to 1: quarters; then constant, or eighths down."""
    constant = config("sft", learning_rate=1.0, warmup_steps=4, steps=12)
    linear = config("sft", learning_rate=1.0, warmup_steps=4, steps=12, schedule="linear")
    assert [learning_rate(step, constant) for step in (0, 1, 3, 4, 11)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert [learning_rate(step, linear) for step in (0, 3, 4, 8, 11)] == [0.25, 1.0, 1.0, 0.5, 0.125]


def test_weight_decay_is_decoupled():
    parameters = [torch.nn.Parameter(torch.ones(2))]
    assert type(make_optimizer(parameters, config("sft"))) is torch.optim.Adam
    assert type(make_optimizer(parameters, config("sft", weight_decay=0.1))) is torch.optim.AdamW


@pytest.mark.parametrize("objective", ["rwr", "dpo"])
def test_full_fine_tuning_keeps_the_whole_transformer(objective, generator, clip_set, base, tmp_path, tiny_wan):
    report = run(objective, generator, clip_set, base, tmp_path, full=True, steps=2, learning_rate=1e-3)
    assert report.parameters == sum(p.numel() for p in generator.component("transformer").parameters())
    sampler = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
    lora.apply_policy(sampler, tmp_path / "out")
    trained, loaded = generator.component("transformer").state_dict(), sampler.component("transformer").state_dict()
    assert all(torch.equal(trained[key], loaded[key]) for key in trained)
    if objective == "dpo":
        assert log(tmp_path)[0]["implicit_reward_margin"] == 0.0


# Killed, and started again


def start_child(tiny_wan: Path, clip_set, base: Path, home: Path, changes: dict, pause: float = 0.0, **environment):
    return start(run_slowly, tiny_wan, clip_set.folder, base, home, changes, pause, **environment)


def test_killed_and_started_again_it_ends_with_the_same_bytes(tiny_wan, clip_set, base, tmp_path):
    changes = {"steps": 20, "checkpoint_every": 2}
    run("dpo", tiny_wan, clip_set, base, tmp_path / "whole", **changes)
    child = start_child(tiny_wan, clip_set, base, tmp_path / "killed", changes, pause=0.05)
    state = tmp_path / "killed" / "work" / STATE_FILE
    while not state.is_file():
        assert child.is_alive(), "ended before it wrote a state"
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not (tmp_path / "killed" / "out").exists()
    report = run("dpo", tiny_wan, clip_set, base, tmp_path / "killed", **changes)
    assert report.steps < 20  # it did not start afresh
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")


# What it took


def test_forwards_and_backwards_are_counted_by_clips(tiny_wan, clip_set, base, tmp_path):
    """5 steps of 4 rows. dpo: 2 clips a row, by policy and reference. Of rwr's rows every other has weight 0."""
    for objective, forwards, backwards in (("sft", 20, 20), ("dpo", 80, 40)):
        counts = run(objective, tiny_wan, clip_set, base, tmp_path / objective).counts
        assert counts == Counts(forwards=forwards, backwards=backwards)
    rwr = run("rwr", tiny_wan, clip_set, base, tmp_path / "rwr", steps=4).counts  # two passes of 8 rows
    assert rwr == Counts(forwards=8, backwards=8)


def test_counts_depend_neither_on_pieces_nor_on_checkpointing_nor_on_pictures(tiny_wan, clip_set, base, tmp_path):
    preview = {"prompts": 1, "every": 2, "steps": 1, "guidance": 1.0, "solver": "euler"}
    for name, changes in (
        ("pieces", {"gradient_accumulation": 3}),
        ("checkpointing", {"gradient_checkpointing": True}),
        ("pictures", {"preview": preview}),
    ):
        counts = run("dpo", tiny_wan, clip_set, base, tmp_path / name, **changes).counts
        assert counts == Counts(forwards=80, backwards=40), name


def test_a_run_that_is_killed_and_resumed_counts_the_steps_of_both_starts(
    tiny_wan, clip_set, base, tmp_path, monkeypatch
):
    whole = run("dpo", tiny_wan, clip_set, base, tmp_path / "whole").counts
    done, append = [], frame.append_log

    def killed(*args, **kwargs):
        done.append(1)
        if len(done) == 4:  # in the fourth step; the last state is that of the second
            raise Killed
        return append(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(frame, "append_log", killed)
        with pytest.raises(Killed):
            run("dpo", tiny_wan, clip_set, base, tmp_path / "killed")
    resumed = run("dpo", tiny_wan, clip_set, base, tmp_path / "killed")
    assert resumed.steps == 3 and resumed.counts == whole == Counts(forwards=80, backwards=40)


def test_a_state_of_a_version_that_did_not_count_leaves_the_counts_unknown(
    tiny_wan, clip_set, base, tmp_path, monkeypatch
):
    run_until_publishing(tiny_wan, clip_set, base, tmp_path, monkeypatch)
    monkeypatch.setattr(resume_state, "steps_counted", lambda work: None)
    assert run("sft", tiny_wan, clip_set, base, tmp_path).counts is None


class Killed(BaseException):
    """Stands for a kill at a chosen line, which a signal cannot be aimed at."""


@pytest.mark.parametrize("moment", ["write_state", "append_log", "write_manifest", "publish"])
def test_no_moment_to_be_killed_at_changes_the_bytes(moment, tiny_wan, clip_set, base, tmp_path, monkeypatch):
    run("sft", tiny_wan, clip_set, base, tmp_path / "whole")
    home = resume_state if hasattr(resume_state, moment) else frame
    original, calls = getattr(home, moment), []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == (2 if moment in ("write_state", "append_log") else 1):
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(home, moment, killed)
        with pytest.raises(Killed):
            run("sft", tiny_wan, clip_set, base, tmp_path / "killed")
    run("sft", tiny_wan, clip_set, base, tmp_path / "killed")
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")


def test_a_run_resumed_on_other_threads_says_so_and_policy_json_keeps_both(
    tiny_wan, clip_set, base, tmp_path, monkeypatch, caplog
):
    run_until_publishing(tiny_wan, clip_set, base, tmp_path, monkeypatch)
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "set by the user")  # else a small model gets one thread
    torch.set_num_threads(before + 1)
    try:
        run("sft", tiny_wan, clip_set, base, tmp_path)
    finally:
        torch.set_num_threads(before)
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert warning == (
        f"resumed after step 4, other than the steps before: threads {before + 1} (was {before}); the policy may differ"
    )
    entries = json.loads((tmp_path / "out/policy.json").read_text())["made_with"]
    assert [(entry["from_step"], entry["device"]["threads"]) for entry in entries] == [(0, before), (4, before + 1)]


def test_a_run_resumed_at_another_commit_keeps_both_and_does_not_warn(
    tiny_wan, clip_set, base, tmp_path, monkeypatch, caplog
):
    run_until_publishing(tiny_wan, clip_set, base, tmp_path, monkeypatch)
    monkeypatch.setattr(provenance, "code", lambda root: {"commit": "another", "changed": []})
    run("sft", tiny_wan, clip_set, base, tmp_path)
    entries = json.loads((tmp_path / "out/policy.json").read_text())["made_with"]
    assert [entry["from_step"] for entry in entries] == [0, 4] and entries[1]["code"]["commit"] == "another"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


# Threads and processes


def test_another_number_of_threads_changes_the_adapter_by_float_order_alone(tiny_wan, clip_set, base, tmp_path):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            run("dpo", tiny_wan, clip_set, base, tmp_path / str(threads), **FLOAT_ORDER)
    finally:
        torch.set_num_threads(before)
    one, two = adapter(tmp_path / "1"), adapter(tmp_path / "2")
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


def run_until_publishing(tiny_wan, clip_set, base, home, monkeypatch):
    """Train to the last step, and be killed before the policy is published."""
    with monkeypatch.context() as patch:
        patch.setattr(frame, "publish", lambda work, out: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run("sft", tiny_wan, clip_set, base, home)


def test_a_torn_log_line_and_a_half_written_checkpoint_are_dropped(tiny_wan, clip_set, base, tmp_path, monkeypatch):
    run("sft", tiny_wan, clip_set, base, tmp_path / "whole")
    run_until_publishing(tiny_wan, clip_set, base, tmp_path / "killed", monkeypatch)
    folder = tmp_path / "killed" / "work" / "policy"
    with open(folder / "log.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    (folder / CHECKPOINTS / ".unfinished").mkdir()
    (folder / CHECKPOINTS / ".unfinished" / "torn").write_text("")
    run("sft", tiny_wan, clip_set, base, tmp_path / "killed")
    assert contents(tmp_path / "killed" / "out") == contents(tmp_path / "whole" / "out")


def test_killed_right_after_publishing_it_ends_with_the_same_bytes(tiny_wan, clip_set, base, tmp_path):
    """DVC deletes what was published before a new run, which goes on from the last state, that of step 4."""
    run("sft", tiny_wan, clip_set, base, tmp_path)
    published = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "gone")
    assert run("sft", tiny_wan, clip_set, base, tmp_path).steps == 1
    assert contents(tmp_path / "out") == published


def test_resume_from_another_folder(tiny_wan, clip_set, base, tmp_path, monkeypatch):
    run("sft", tiny_wan, clip_set, base, tmp_path / "whole")
    run_until_publishing(tiny_wan, clip_set, base, tmp_path / "old", monkeypatch)
    report = run("sft", tiny_wan, clip_set, base, tmp_path / "new", resume_from=tmp_path / "old" / "work")
    assert report.steps == 1  # of five, the last state being that of step 4
    assert contents(tmp_path / "new" / "out") == contents(tmp_path / "whole" / "out")


def test_resuming_another_configuration_names_the_key_that_differs(tiny_wan, clip_set, base, tmp_path):
    run("sft", tiny_wan, clip_set, base, tmp_path / "old", steps=2)
    other = {"learning_rate": 0.02, "seed": 2, "deterministic": False, "timesteps": {"name": "shifted", "shift": 3}}
    for key, value in other.items():
        changes = {"steps": 2, key: value, "resume_from": tmp_path / "old" / "work"}
        with pytest.raises(ResumeError, match=rf"config\.{key} was .* and is .* now"):
            run("sft", tiny_wan, clip_set, base, tmp_path / key, **changes)


def test_resuming_from_nothing_is_an_error(tiny_wan, clip_set, base, tmp_path):
    with pytest.raises(ResumeError, match=r"no state\.safetensors to resume from"):
        run("sft", tiny_wan, clip_set, base, tmp_path, resume_from=tmp_path / "nowhere")


def test_a_loss_that_is_not_finite_stops_before_its_step(generator, clip_set, base, tmp_path):
    predict, calls = generator.predict, []

    def diverging(*args):
        calls.append(1)
        return predict(*args) * (float("nan") if len(calls) == 4 else 1.0)

    generator.predict = diverging
    with pytest.raises(NonFiniteLossError, match="step 4: loss nan.*last good checkpoint is .*step-000002"):
        run("sft", generator, clip_set, base, tmp_path)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "work" / "policy" / CHECKPOINTS / "step-000002" / lora.LORA_FILE).is_file()
    parameters = lora.trainable_parameters(generator.component("transformer"))
    assert all(torch.isfinite(parameter).all() for parameter in parameters)


def spoilt(generator, *steps: int) -> None:
    """Make the loss of these forwards infinite or NaN, as they are counted from 1."""
    predict, calls = generator.predict, []

    def spoiling(*args):
        calls.append(1)
        return predict(*args) * (float("nan") if len(calls) in steps else 1.0)

    generator.predict = spoiling


@pytest.mark.parametrize("fused", [True, False])
def test_where_reading_waits_a_loss_that_is_not_finite_is_found_when_it_is_read_and_was_not_applied(
    fused, tiny_wan, clip_set, base, tmp_path, monkeypatch
):
    """Steps 5 and 6 are lost; the weights are those of step 4, and no state or checkpoint is of a later one."""
    monkeypatch.setattr(devices, "has_fused_adam", lambda device: fused)
    changes = {"steps": 8, "log_every": 3, "checkpoint_every": 4}
    generator = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
    run("sft", generator, clip_set, base, tmp_path / "whole", **changes | {"steps": 4})
    monkeypatch.setattr(devices, "reads_freely", lambda device: False)
    generator = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
    spoilt(generator, 5)
    with pytest.raises(NonFiniteLossError, match="step 5: loss nan, gradient norm nan; step not applied, .*000004"):
        run("sft", generator, clip_set, base, tmp_path / "spoilt", **changes)
    assert resume_state.steps_done(tmp_path / "spoilt" / "work") == 4
    kept = adapter(tmp_path / "whole")
    trained = dict(generator.component("transformer").named_parameters())
    for name, value in kept.items():
        of_model = name.removeprefix("transformer.").replace(".weight", ".policy.weight")
        assert torch.equal(trained[of_model], value), name


def test_where_reading_waits_a_step_reads_nothing_but_where_it_logs_or_checkpoints(
    tiny_wan, clip_set, base, tmp_path, monkeypatch
):
    """And the policy, its log and its state are the same."""
    changes = {"steps": 8, "log_every": 4, "checkpoint_every": 8}
    run("dpo", tiny_wan, clip_set, base, tmp_path / "read", **changes)
    reads = []
    monkeypatch.setattr(devices, "reads_freely", lambda device: False)
    monkeypatch.setattr(frame, "_read", lambda line, read=frame._read: reads.append(line["step"]) or read(line))
    run("dpo", tiny_wan, clip_set, base, tmp_path / "seldom", **changes)
    assert reads == [4, 8]
    read, seldom = (contents(tmp_path / name / "out") for name in ("read", "seldom"))
    assert read == seldom


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_step_on_a_gpu_never_waits_for_it(tiny_wan, clip_set, base, tmp_path):
    """CUDA raises an error for each wait between two lines of the log."""
    generator = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",), device="cuda")
    keep = frame.TrainingRun.keep

    def kept(run, line, log=False):
        torch.cuda.set_sync_debug_mode("default")
        keep(run, line, log)
        torch.cuda.set_sync_debug_mode("error" if run.done < 7 else "default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame.TrainingRun, "keep", kept)
        run("dpo", generator, clip_set, base, tmp_path, steps=8, log_every=8, checkpoint_every=8)


# Many processes


def test_two_processes_train_the_adapter_of_one(tiny_wan, clip_set, base, tmp_path):
    """And draw its clips, each process those of its own prompts."""
    changes = {
        "steps": 4,
        "batch_size": 3,
        "preview": {"prompts": 2, "every": 2, "steps": 3, "guidance": 1.5, "solver": "unipc"},
        **FLOAT_ORDER,
    }
    run("dpo", tiny_wan, clip_set, base, tmp_path / "one", **changes)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        start_child(tiny_wan, clip_set, base, tmp_path / "two", changes, RANK=rank, LOCAL_RANK=rank, **group)
        for rank in "01"
    ]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)
    assert len(log(tmp_path / "two")) == 4
    drawn = [previews_in(tmp_path / home / "out") for home in ("one", "two")]
    assert [*drawn[0]] and {*drawn[0]} == {*drawn[1]} == {0, 2, 4}
    alone, shared = (np.asarray(Image.open(of[0])).astype(int) for of in drawn)
    assert alone.shape == shared.shape and np.abs(alone - shared).max() <= 1  # rounded after float order


@pytest.mark.ci
def test_the_reference_point_of_kto_is_of_all_processes(tiny_wan, clip_set, base, tmp_path):
    """Of three rows one process has one and the other two, in one forward or in one each."""
    changes = {"steps": 4, "batch_size": 3, "seed": 2, **FLOAT_ORDER}
    run("kto", tiny_wan, clip_set, base, tmp_path / "one", **changes)
    of = {"together": changes, "split": changes | {"gradient_accumulation": 2}}
    run_together(2, [Run(tmp_path / name, tiny_wan, base, "kto", clip_set.folder, how) for name, how in of.items()])
    one = adapter(tmp_path / "one")
    assert any(line["reference_point"] > 0 for line in log(tmp_path / "one"))
    for name in of:
        two = adapter(tmp_path / name)
        assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one), name
        for line, alone in zip(log(tmp_path / name), log(tmp_path / "one"), strict=True):
            known = {key: value for key, value in alone.items() if value is not None}  # null: of no row of the batch
            assert {key: line[key] for key in known} == pytest.approx(known, rel=1e-3, abs=1e-6), name
            assert all(line[key] is None for key in alone.keys() - known), name


def test_the_slices_of_all_ranks_are_the_batch_in_its_order(monkeypatch):
    for count, pieces, ranks in ((10, 1, 3), (2, 4, 1), (7, 2, 2)):
        monkeypatch.setattr(devices, "world_size", lambda ranks=ranks: ranks)
        covered = []
        for rank in range(ranks):
            monkeypatch.setattr(devices, "rank", lambda rank=rank: rank)
            covered += [place for piece in devices.slice_of_rank(count, pieces) for place in piece]
        assert covered == list(range(count)), (count, pieces, ranks)


def test_devices_are_picked_by_name():
    assert devices.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'gpu' is unknown; known: auto, cpu, cuda, tpu"):
        devices.pick_device("gpu")
    if not torch.accelerator.is_available():
        assert devices.pick_device("auto") == torch.device("cpu")
        with pytest.raises(ValueError, match="'cuda' needs a CUDA GPU that torch can see; this machine has: cpu"):
            devices.pick_device("cuda")


# Wrong input


def test_rows_that_cannot_be_trained_on_are_an_error(generator, clip_set, base, tmp_path):
    elsewhere, unweighted = Pair("p0", "p0-0", "elsewhere", 1.0), Weighted("p0-0", "p0", 0.0, 0.0)
    soft = Weighted("p0-0", "p0", 0.7, 0.7)
    for objective, table, error in (
        ("kto", [soft], "kto learns from accepted and rejected clips, and p0-0 has the reward 0.7"),
        ("dpo", [], "dpo: the table of Pair rows is empty, there is nothing to train on"),
        ("dpo", [elsewhere], r"1 clips of the Pair rows are in no clip set: \['elsewhere'\]"),
        ("rwr", [unweighted], "every one of the 1 rows has weight 0"),
    ):
        with pytest.raises(ValueError, match=error):
            run(objective, generator, clip_set, base, tmp_path, table=table)


def test_clip_sets_that_do_not_go_together_are_an_error(clip_set, tmp_path):
    with pytest.raises(ValueError, match="p0-0 stands in two of the 2 clip sets"):
        ClipReader([clip_set, clip_set])
    larger = write_clip_set(tmp_path / "larger", prefix="q", shape=(4, 3, 8, 8))
    with pytest.raises(ValueError, match="latents differ in shape"):
        ClipReader([clip_set, larger])
    told_more = write_clip_set(tmp_path / "told", prefix="q", more={"fps": torch.ones(1)})
    with pytest.raises(ValueError, match=r"conditions differ in shape.*told': \{'fps': \(1,\), 'text': \(6, 16\)\}"):
        ClipReader([clip_set, told_more])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_clips_in_two_sets_train_the_same_bytes_as_the_same_clips_in_one(objective, tiny_wan, base, tmp_path):
    """The second half of the prompts in a set of its own: every row, noise and condition is the same."""
    whole = write_clip_set(tmp_path / "whole", prompts=4)
    halves = [half_of(whole, tmp_path / name, names) for name, names in (("r1", ["p0", "p1"]), ("r1b", ["p2", "p3"]))]
    table = rows(objective, whole)
    for name, clip_sets in (("one", [whole]), ("two", halves)):
        generator = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
        home = tmp_path / name
        how = get_objective(objective), config(objective), base, home / "work", home / "out", {"set": "r1"}
        train(generator, clip_sets, table, *how)

    one, two = (contents(tmp_path / name / "out") for name in ("one", "two"))
    assert one[lora.LORA_FILE] == two[lora.LORA_FILE] and one["log.jsonl"] == two["log.jsonl"]
    listed = json.loads(two["policy.json"])["clip_sets"]
    assert listed == [half.fingerprint() for half in halves]


def half_of(whole: ClipSet, folder: Path, prompts: list[str]) -> ClipSet:
    """A clip set with the clips of these prompts."""
    writer = ClipSetWriter(folder)
    for index, name in enumerate(prompts):
        samples = [sample for sample in whole.samples if sample.prompt_id == name]
        frames = np.zeros((len(samples), 5, 16, 16, 3), np.uint8)
        writer.add_batch(
            index, samples, encode_clips(samples, frames), whole.latents([sample.sample_id for sample in samples])
        )
    told = {name: {key: one[0] for key, one in whole.conditions([name]).items()} for name in prompts}
    writer.finish(PromptConditions(told, dict(whole.empty), None), {})
    return ClipSet.open(folder)


def test_clips_of_several_rounds_are_read_together(clip_set, tmp_path):
    other = write_clip_set(tmp_path / "r2", prefix="q")
    clips = ClipReader([clip_set, other]).read(["q1-2", "p0-1"], torch.tensor([False, True]))
    assert torch.equal(clips.latents, torch.cat([other.latents(["q1-2"]), clip_set.latents(["p0-1"])]))
    assert torch.equal(clips.conditions["text"][0], other.conditions(["q1"])["text"][0])
    assert torch.equal(clips.conditions["text"][1], clip_set.empty["text"])


def test_a_start_that_does_not_fit_is_an_error(tiny_wan, clip_set, base, tmp_path):
    for name, made, change, error in (
        ("lora", {}, {"lora_rank": 8}, "lora_rank is 8, but .* is continued, whose adapter has 4"),
        ("full", {"full": True}, {}, "fully trained, so a LoRA is not the whole change from the base"),
    ):
        run("sft", tiny_wan, clip_set, base, tmp_path / name, steps=1, **made)
        with pytest.raises(ValueError, match=error):
            run("sft", tiny_wan, clip_set, tmp_path / name / "out", tmp_path / f"{name}2", **change)


def test_a_start_that_is_no_policy_is_an_error(generator, clip_set, tmp_path):
    with pytest.raises(lora.LoraError, match=r"no policy\.json, so no policy$"):
        run("sft", generator, clip_set, tmp_path, tmp_path / "home")


def test_a_wrong_setting_is_named_with_section_key_value_and_known_keys():
    cases = (
        ("rwr", {"learning_rte": 1.0}, "train.rwr.learning_rte (1.0) is unknown; known keys are full, lora_rank"),
        ("rwr", {"beta": 1.0}, "train.rwr.beta (1.0) is unknown"),  # of another objective
        ("dpo", {"beta": 100.0}, "train.dpo.chosen_error_weight is missing; known keys are full"),
        ("dpo", DPO | {"beta": 0}, "train.dpo.beta is 0, expected greater than 0"),
        (
            "dpo",
            DPO | {"label_noise": 0.5},
            "train.dpo.label_noise: 0.5 is no label noise, expected a number from 0",
        ),
        ("dpo", DPO | {"label_noise": "audit"}, "'audit' is no label noise"),
        ("dpo", DPO | {"form": "hinge"}, "train.dpo.form is 'hinge', expected 'sigmoid' or 'ipo'"),
        ("nft", NFT | {"reward_from": "label"}, "train.nft.reward_from is 'label', expected 'reward' or 'advantage'"),
        ("kto", {"beta": 1.0}, "train.kto.desirable_weight is missing; known keys are full"),
        ("sft", {"learning_rate": "high"}, "train.sft.learning_rate is 'high', expected a valid number"),
        ("sft", {"schedule": "cosine"}, "train.sft.schedule is 'cosine', expected 'constant' or 'linear'"),
        ("sft", {"timesteps": {"name": "beta"}}, "train.sft.timesteps.name is 'beta', expected one of uniform, logit"),
        ("sft", {"timesteps": {"name": "shifted", "shift": 0}}, "train.sft.timesteps.shift is 0, expected greater"),
        ("sft", {"timesteps": {"name": "uniform", "std": 1}}, "train.sft.timesteps.std (1) is unknown; known keys are"),
        ("sft", {"lora_targets": "to_q"}, "train.sft.lora_targets is 'to_q', expected a list"),
    )
    for objective, change, error in cases:
        with pytest.raises(ConfigError) as raised:
            configure(get_objective(objective), CONFIG | change)
        assert error in str(raised.value), change


def test_each_objective_finds_its_own_settings_in_its_config():
    """And a whole number stays one, for the bytes of the adapter's file."""
    for name, objective in OBJECTIVES.items():
        found = config(name)
        own = found.of(objective)
        assert own.items() >= OWN.get(name, {}).items() and set(own) == set(objective.settings)
        assert type(found.lora_alpha) is int


def test_the_papers_preset_laid_over_params_trains_as_the_paper_does():
    """Appendix A of Furuta et al."""
    params = default_params()
    for path in layers(["paper"]):
        overlay(params, values_of(path))
    for name in ("sft", "rwr", "dpo"):
        objective = OBJECTIVES[name]
        paper = configure(objective, params["train"]["common"] | params["train"][name])
        assert (paper.full, paper.learning_rate, paper.batch_size, paper.steps) == (True, 1e-4, 64, 10_000)
        assert (paper.warmup_steps, paper.max_grad_norm, paper.checkpoint_every) == (10_000, 1.0, 500)
        own = config("dpo", beta=5000, chosen_error_weight=0.0) if name == "dpo" else paper  # Eq. 7, no option
        assert paper.of(objective) == own.of(objective)
