"""Training on clips that a generator makes in several parts: which part a row is trained on, offline and online."""

from typing import NamedTuple

import pytest
import torch

from generators.core.load import load_generator
from generators.core.process import standard_normal
from generators.core.size import VideoSize
from generators.families.framepack import WINDOW
from generators.tiny.variants import VARIANTS
from rl.online import trainer as online
from rl.online.judging import WeightedJudge
from rl.online.loop import PromptInputs
from rl.online.trainer import train_online
from rl.training.batches import draw, rows_of_step
from rl.training.timesteps import Uniform
from tests.support.online import LAST_STEPS, Answers
from tests.support.online import config as online_config
from tests.support.stock import first_frame
from tests.support.training import rows, run, write_base, write_clip_set

NAMES = ("framepack-i2v", "framepack-f1")


def load(folder, name: str, parts=("denoiser",)):
    variant = VARIANTS[name]
    size = VideoSize(variant.num_frames, variant.height, variant.width, 8)
    return load_generator(variant.family, str(folder), size, max_prompt_tokens=16, parts=parts)


class Prompted(NamedTuple):
    """The conditions of a prompt, and of the empty one, without a batch axis."""

    conditions: dict[str, torch.Tensor]
    empty: dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def prompted(name, tiny_model) -> Prompted:
    generator = load(tiny_model(name), name, ("text", "image", "vae"))
    text = generator.encode_text(["lifting red ball up", ""])
    image = torch.frombuffer(bytearray(first_frame().tobytes()), dtype=torch.uint8).view(1, 32, 32, 3)
    seen = {key: tensor[0] for key, tensor in generator.encode_image(image).items()}
    return Prompted(
        {key: tensor[0] for key, tensor in text.items()} | seen, {key: tensor[1] for key, tensor in text.items()}
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("policies") / "base")


def test_parts_are_drawn_alike_and_change_no_other_draw():
    one, three = (draw(1, 0, range(300), (1,), Uniform(), 0.5, parts=parts) for parts in (1, 3))
    assert not one.part.any()
    assert all(70 < count < 130 for count in three.part.bincount().tolist())
    for key in ("t", "noise", "dropped"):
        assert torch.equal(getattr(one, key), getattr(three, key))


def test_both_clips_of_a_pair_are_trained_on_one_part_with_its_own_history(name, prompted, tiny_model, base, tmp_path):
    """The loss of the first step by hand, where the policy is the reference; and every part's turn comes."""
    generator = load(tiny_model(name), name)
    shape = generator.latent_shape
    short = {key: prompted.conditions[key][:6] for key in ("text", "text_mask")}  # as long as the empty caption there
    clip_set = write_clip_set(
        tmp_path / "clips",
        shape=shape,
        more=prompted.conditions | short,
        facts={"family": generator.family, "embedded_guidance": 6.0},
    )
    calls, predict = [], generator.predict
    generator.predict = lambda *args: calls.append(args) or predict(*args)

    run("dpo", generator, clip_set, base, tmp_path, steps=3, caption_dropout=0.0)

    table, parts = rows("dpo", clip_set), []
    for step in range(3):
        latents, t, conditions = calls[2 * step + 1]  # the reference is asked first
        assert latents.shape[2] == WINDOW
        batch = [table[row] for row in rows_of_step(step, 4, len(table), seed=1)]
        draws = draw(1, step, range(4), shape, Uniform(), 0.0, parts=generator.num_parts)
        ids = [*(row.chosen for row in batch), *(row.rejected for row in batch)]
        whole = clip_set.conditions([row.prompt_id for row in batch] * 2)
        section, wanted = generator.view(clip_set.latents(ids), whole, draws.part.repeat(2))
        noise, _ = generator.view(draws.noise.repeat(2, 1, 1, 1, 1), whole, draws.part.repeat(2))
        assert torch.equal(t, draws.t.repeat(2))
        torch.testing.assert_close(latents, generator.process.noised(section, noise, t))
        assert conditions.keys() == wanted.keys()
        assert all(torch.equal(conditions[key], wanted[key]) for key in wanted)
        parts += draws.part.tolist()
    assert {*parts} == {0, 1}


class Bright:
    """Asks whether the latents of the whole clip are large."""

    name = "bright"

    def frame_indices(self, num_frames: int, seed: int) -> list[int]:
        return [0]

    def __call__(self, frames, prompt_id, seed):
        mean = frames.mean()
        return Answers(("bright",), -mean[None], mean.detach().sigmoid()[None])


def inputs_of(prompted: Prompted) -> PromptInputs:
    conditions = {key: torch.stack([tensor, tensor]) for key, tensor in prompted.conditions.items()}
    return PromptInputs(("p0", "p1"), conditions, prompted.empty)


@pytest.mark.parametrize("rollout", [{}, LAST_STEPS, LAST_STEPS | {"gradient_steps": 3}], ids=["random", "two", "all"])
def test_a_rollout_makes_one_part_of_a_sampled_clip_again(rollout, name, prompted, tiny_model):
    generator = load(tiny_model(name), name)
    config, inputs = online_config(solver="euler", guidance=2.0, **rollout), inputs_of(prompted)
    for weight in generator.component("transformer").parameters():
        weight.requires_grad_(True)
    parts = set()
    for update in range(6):
        _, rolled = online._roll_out(generator, inputs, config, update, {0: 0, 1: 1})
        noise = torch.stack(
            [standard_normal(online.generator_at(1, "noise", update, n), generator.latent_shape) for n in (0, 1)]
        )
        clip = generator.sample(inputs.conditions, inputs.unwanted, noise, 3, 2.0, "euler")
        assert torch.equal(rolled.latents[:, :, :1], inputs.conditions["given"])
        differs = (rolled.latents - clip).abs().amax((0, 1, 3, 4)) > 1e-5
        gradient = torch.autograd.grad(rolled.latents[:, :, 1:10].sum(), weight, retain_graph=True, allow_unused=True)
        part = 0 if gradient[0].any() else 1
        inside = range(1 + WINDOW * part, 1 + WINDOW * (part + 1))
        assert not differs[[frame for frame in range(19) if frame not in inside]].any()
        if rollout:  # sampled to the end, so the same section again
            torch.testing.assert_close(rolled.latents, clip, atol=2e-5, rtol=1e-4)
        assert rolled.forwards[0].latents.shape[2] == WINDOW
        parts.add(part)
    assert parts == {0, 1}


def test_the_policy_comes_to_please_the_judge(name, prompted, tiny_model, base, tmp_path):
    generator, inputs = load(tiny_model(name), name), inputs_of(prompted)
    noise = generator.draw_noise([1, 2], generator.latent_shape)

    def mean() -> float:
        return generator.sample(inputs.conditions, inputs.unwanted, noise, 3, 1.0, "euler")[:, :, 1:].mean().item()

    before = mean()
    train_online(
        generator, inputs, (WeightedJudge(Bright(), 1.0),), lambda latents, _: latents,
        online_config(solver="euler", updates=12, checkpoint_every=12, velocity_weight=0.01, **LAST_STEPS), base,
        tmp_path / "work", tmp_path / "out", {"recipe": "test"},
    )  # fmt: skip
    assert mean() > before + 0.05
