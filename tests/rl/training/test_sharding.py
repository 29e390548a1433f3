"""Claims about weights in shards, on one process, and on several of gloo (mark ci)."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from cluster import devices
from data.policies import previews_in
from data.store import ClipSet
from generators.core import lora
from generators.core.generator import Generator
from generators.core.load import load_generator
from generators.core.size import VideoSize
from generators.tiny.variants import VARIANTS
from rl.training import sharding, state
from rl.training.batches import draw
from rl.training.policies import make_trainable
from rl.training.state import ResumeError
from rl.training.timesteps import Uniform
from tests.rl.training.test_trainer import contents
from tests.support.group import Run, run_alone, run_together
from tests.support.online import LAST_STEPS
from tests.support.tiny import load_wan
from tests.support.training import config, run, write_base, write_clip_set

BOUNDARY = 0.875  # between the denoisers of the tiny Wan 2.2
FLOAT_ORDER = {"eps": 1e-4}  # Adam divides the noise of a gradient near 0 by itself, unless eps is above it


@pytest.fixture(scope="module")
def clip_set(tmp_path_factory) -> ClipSet:
    return write_clip_set(tmp_path_factory.mktemp("clips") / "samples")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("policies") / "base")


@pytest.fixture
def group_of_one() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def weights_of(home: Path) -> dict[str, torch.Tensor]:
    """The policy's weights, of a LoRA or in full."""
    lora_file, full = home / "out" / lora.LORA_FILE, home / "out/transformer/diffusion_pytorch_model.safetensors"
    return load_file(lora_file if lora_file.is_file() else full)


def close(one: Path, other: Path, atol: float = 1e-5) -> bool:
    first, second = weights_of(one), weights_of(other)
    return first.keys() == second.keys() and all(torch.allclose(first[k], second[k], atol=atol) for k in first)


# One process


@pytest.mark.parametrize("full", [False, True])
def test_one_process_alone_keeps_its_weights_whole(full, tiny_wan, clip_set, base, tmp_path):
    for name, shard in (("whole", False), ("asked", True)):
        run("dpo", tiny_wan, clip_set, base, tmp_path / name, full=full, shard=shard)
    whole, asked = weights_of(tmp_path / "whole"), weights_of(tmp_path / "asked")
    assert all(torch.equal(whole[key], asked[key]) for key in whole)
    written = [json.loads((tmp_path / name / "out/policy.json").read_text())["config"] for name in ("whole", "asked")]
    assert "shard" not in written[0] and written[1] == {**written[0], "shard": True}


def test_lora_over_shards_trains_the_bits_of_whole_weights(tiny_wan, clip_set, base, tmp_path, group_of_one):
    run("dpo", tiny_wan, clip_set, base, tmp_path / "whole")
    sharded = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
    run("dpo", sharded, clip_set, base, tmp_path / "shards", shard=True)
    weight = sharded.component("transformer").blocks[0].attn1.to_q.base_layer.weight
    assert isinstance(weight, distributed.tensor.DTensor)
    whole, shards = (contents(tmp_path / name / "out") for name in ("whole", "shards"))
    differing = {name for name in whole if whole[name] != shards[name]}
    assert differing == {name for name in whole if name.endswith(("policy.json", "manifest.json"))}


def test_rows_of_weight_0_are_run_over_shards_and_add_nothing(tiny_wan, clip_set, base, tmp_path, group_of_one):
    """Alone in their forwards, and beside others."""
    for pieces in (4, 2):
        changes = {"gradient_accumulation": pieces, **FLOAT_ORDER}
        homes = [tmp_path / f"{name}-{pieces}" for name in ("whole", "shards")]
        for home, shard in zip(homes, (False, True), strict=True):
            run("rwr", tiny_wan, clip_set, base, home, shard=shard, **changes)
        assert close(*homes)


def test_full_weights_in_shards_are_those_of_whole_ones_and_load_as_they_do(
    tiny_wan, clip_set, base, tmp_path, group_of_one
):
    for name, shard in (("whole", False), ("shards", True)):
        run("dpo", tiny_wan, clip_set, base, tmp_path / name, full=True, shard=shard)
    assert close(tmp_path / "whole", tmp_path / "shards")
    configs = [(tmp_path / name / "out/transformer/config.json").read_text() for name in ("whole", "shards")]
    assert configs[0] == configs[1]
    sampler = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
    lora.apply_policy(sampler, tmp_path / "shards/out")
    assert sorted(path.name for path in (tmp_path / "shards/work").glob("state*")) == ["state-000004"]


def test_full_weights_in_shards_wait_for_no_device(tiny_wan, clip_set, base, tmp_path, group_of_one, monkeypatch):
    changes = {"full": True, "shard": True, "log_every": 4}
    run("dpo", tiny_wan, clip_set, base, tmp_path / "read", **changes)
    monkeypatch.setattr(devices, "reads_freely", lambda device: False)
    run("dpo", tiny_wan, clip_set, base, tmp_path / "seldom", **changes)
    assert contents(tmp_path / "read/out") == contents(tmp_path / "seldom/out")


@pytest.mark.ci
def test_a_state_of_shards_is_the_old_or_the_new_one_whole(
    tiny_wan, clip_set, base, tmp_path, group_of_one, monkeypatch
):
    """Killed before the rename, before the older one is removed, and while a later one is written."""
    changes = {"full": True, "shard": True, "steps": 6}
    run("sft", tiny_wan, clip_set, base, tmp_path / "whole", **changes)
    for moment in ("rename", "rmtree"):
        home = tmp_path / moment
        with monkeypatch.context() as patch:
            patch.setattr(*_killing(moment))
            with pytest.raises(KeyboardInterrupt):
                run("sft", tiny_wan, clip_set, base, home, **changes)
        assert state.steps_done(home / "work") == (2 if moment == "rename" else 4)
        run("sft", tiny_wan, clip_set, base, home, **changes)
        assert contents(home / "out") == contents(tmp_path / "whole/out"), moment
        assert [path.name for path in (home / "work").glob("state*")] == ["state-000006"]


def _killing(moment: str):
    """What to patch so that the state of step 4 is not renamed, or the older one not removed."""
    if moment == "rmtree":

        def removed(path, *args, **kwargs):
            if Path(path).name == "state-000002":
                raise KeyboardInterrupt
            original_rmtree(path, *args, **kwargs)

        original_rmtree = shutil.rmtree
        return state.shutil, "rmtree", removed

    def renamed(path, target):
        if path.name.startswith("state-000004."):
            raise KeyboardInterrupt
        return original_rename(path, target)

    original_rename = Path.rename
    return Path, "rename", renamed


def test_a_state_of_shards_holds_no_pickle_and_belongs_to_its_run(tiny_wan, clip_set, base, tmp_path, group_of_one):
    run("sft", tiny_wan, clip_set, base, tmp_path / "old", steps=2, full=True, shard=True)
    (files,) = (tmp_path / "old/work").glob("state*")
    assert {path.suffix for path in files.iterdir()} == {".safetensors", ".json"}
    with pytest.raises(ResumeError, match=r"state-000002: config\.seed was 1 .* and is 2 now"):
        run("sft", tiny_wan, clip_set, base, tmp_path / "new", steps=2, full=True, shard=True, seed=2,
            resume_from=tmp_path / "old/work")  # fmt: skip


def test_shard_is_refused_where_there_is_none(tiny_wan, clip_set, base, tmp_path):
    generator = load_wan(tiny_wan, max_prompt_tokens=6, parts=("denoiser",))
    generator.device = type("Tpu", (), {"type": "tpu"})()
    with pytest.raises(ValueError, match="shard: true, but torch_tpu has no FSDP2; false"):
        make_trainable(generator, config("sft", shard=True), base)


# Every family

FAMILIES = (
    "wan2.1-t2v", "wan2.1-i2v", "wan2.2-t2v", "cogvideox-2b", "cogvideox1.5-5b-i2v", "animatediff", "unet3d",
    "hunyuan-video-t2v", "hunyuan-video-i2v-33ch", "ltx0.9.7-ti2v", "kandinsky5-t2v", "framepack-i2v",
)  # fmt: skip


class Asked(NamedTuple):
    """What a generator is asked, two rows."""

    noised: torch.Tensor
    t: torch.Tensor
    conditions: dict[str, torch.Tensor]


def asked_of(generator: Generator, image: bool) -> Asked:
    images = torch.full((2, generator.size.height, generator.size.width, 3), 90, dtype=torch.uint8)
    told = dict(generator.encode_text(["a cup", "a box"], images if generator.text_sees_image else None))
    if image:
        told |= generator.encode_image(images)
    noise = generator.draw_noise([1, 2], generator.latent_shape)
    noised, conditions = generator.view(noise, told, torch.zeros(2, dtype=torch.long))
    return Asked(noised, torch.tensor([0.97, 0.3]), conditions)


@pytest.mark.ci
@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_blocks_are_found_and_its_prediction_stays(name, tiny_model, base, group_of_one):
    """And the gradient of its trained weights."""
    variant, results = VARIANTS[name], []
    size = VideoSize(variant.num_frames, variant.height, variant.width, 8)
    for shard in (False, True):
        generator = load_generator(
            variant.family, str(tiny_model(name)), size, max_prompt_tokens=variant.max_prompt_tokens
        )
        asked = asked_of(generator, variant.image != "none")
        policy = make_trainable(generator, config("sft", shard=shard, full=not generator.takes_lora), base)
        prediction = generator.predict(*asked)
        prediction.square().mean().backward()
        results.append((prediction.detach(), [_whole(parameter.grad) for parameter in policy.parameters.values()]))
        for denoiser in generator.denoisers.values():
            blocks = sharding.blocks_of(denoiser)
            in_blocks = sum(weight.numel() for block in blocks for weight in block.parameters())
            assert len(blocks) >= 2 and in_blocks > sum(weight.numel() for weight in denoiser.parameters()) / 2
    (whole, gradients), (shards, sharded) = results
    torch.testing.assert_close(shards, whole, atol=1e-4, rtol=1e-4)
    for one, other in zip(gradients, sharded, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-3)


def _whole(gradient):
    return gradient.full_tensor() if isinstance(gradient, distributed.tensor.DTensor) else gradient


# Several processes


class Home(NamedTuple):
    """Where the runs of several processes lie."""

    folder: Path
    clips: Path
    two_denoisers: tuple[Path, Path]  # a generator and its clips

    def same(self, one: str, other: str) -> bool:
        first, second = (contents(self.folder / name / "out") for name in (one, other))
        return first.keys() == second.keys() and all(
            first[name] == second[name] for name in first if not name.endswith(("policy.json", "manifest.json"))
        )


@pytest.fixture(scope="module")
def home(tiny_wan, tiny_model, clip_set, base, tmp_path_factory) -> Home:
    """All runs of two processes, then those of three and of one that go on from their state."""
    folder = tmp_path_factory.mktemp("sharded")
    run("sft", tiny_wan, clip_set, base, folder / "start", steps=2)
    two = tiny_model("wan2.2-t2v")
    variant = VARIANTS["wan2.2-t2v"]
    size = VideoSize(variant.num_frames, variant.height, variant.width, 8)
    generator = load_generator("wan", str(two), size, max_prompt_tokens=6)
    text = {key: value[0] for key, value in generator.encode_text(["a cup"]).items()}
    clips_of_two = folder / "clips-of-two"
    write_clip_set(clips_of_two, shape=generator.latent_shape, more=text)

    def of(name: str, objective: str | None = None, begin: Path = base, **more) -> Run:
        named = {key: more.pop(key) for key in ("weights", "stops", "on_node") if key in more}
        return Run(folder / name, tiny_wan, begin, objective, clip_set.folder, more, **named)

    drawn = {"prompts": 1, "every": 2, "steps": 2, "guidance": 1.5, "solver": "unipc"}  # one process has none
    last = {**LAST_STEPS, "gradient_checkpointing": True}
    started = folder / "start/out"
    rows = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    full = {"full": True, "shard": True, **FLOAT_ORDER}
    family = ("wan", variant.num_frames, variant.height)
    runs = [
        *(of(f"new-{shard}", "dpo", shard=shard) for shard in (False, True)),
        of("nodes", "dpo", shard=True, on_node=1),
        *(of(f"continued-{shard}", "dpo", started, shard=shard) for shard in (False, True)),
        *(of(f"recomputed-{shard}", "dpo", shard=shard, gradient_checkpointing=True) for shard in (False, True)),
        *(of(f"rwr-{shard}", "rwr", shard=shard, weights=rows, gradient_accumulation=3, **FLOAT_ORDER)
          for shard in (False, True)),
        of("drawn", "sft", shard=True, preview=drawn, steps=2),
        of("full-whole", "dpo", full=True, **FLOAT_ORDER),
        of("full", "dpo", **full),
        of("stopped", "dpo", **full, stops=True),
        *(of(f"online-{shard}", shard=shard, batch_size=1, updates=2) for shard in (False, True)),
        *(of(f"last-{shard}", shard=shard, updates=2, **last) for shard in (False, True)),
        *(Run(folder / f"two-{shard}", two, base, "sft", clips_of_two,
              {"shard": shard, "caption_dropout": 0.0, "steps": 4, **FLOAT_ORDER}, family=family)
          for shard in (False, True)),
    ]  # fmt: skip
    run_together(2, runs)
    for processes in (1, 2, 3):
        shutil.copytree(folder / "stopped/work", folder / f"by-{processes}/work")
        goes_on = of(f"by-{processes}", "dpo", **full)
        run_together(processes, [goes_on]) if processes > 1 else run_alone(goes_on)
    return Home(folder, clip_set.folder, (two, clips_of_two))


@pytest.mark.ci
def test_two_processes_train_a_lora_over_shards_to_the_bit(home):
    """New, continued with a frozen reference, and recomputed in the backward pass."""
    for kind in ("new", "continued", "recomputed"):
        assert home.same(f"{kind}-False", f"{kind}-True"), kind
    assert home.same("new-False", "nodes")  # which gather nothing from each other


@pytest.mark.ci
def test_rows_of_weight_0_and_slices_without_a_row_keep_no_process_waiting(home):
    """Four rows in six forwards, most of weight 0."""
    assert close(home.folder / "rwr-False", home.folder / "rwr-True")


@pytest.mark.ci
def test_a_process_without_a_preview_samples_like_the_others(home):
    assert [step for step, _ in sorted(previews_in(home.folder / "drawn/out").items())] == [0, 2]


@pytest.mark.ci
def test_processes_whose_rows_go_to_different_denoisers_do_not_wait_for_each_other(home):
    of_ranks = [
        [bool((draw(1, step, places, (1,), Uniform(), 0.0).t > BOUNDARY).any()) for places in ((0, 1), (2, 3))]
        for step in range(4)
    ]
    assert any(first != second for first, second in of_ranks)
    assert close(home.folder / "two-False", home.folder / "two-True")


@pytest.mark.ci
def test_online_updates_over_shards_are_those_of_whole_weights(home):
    """One process has no clip of its own; and several recorded steps, computed again in the backward pass."""
    for kind in ("online", "last"):  # Adam moves a weight by its rate however small its gradient is, so rounding shows
        assert close(home.folder / f"{kind}-False", home.folder / f"{kind}-True", atol=1e-4), kind


@pytest.mark.ci
def test_two_processes_train_full_weights_in_shards_to_float_tolerance(home):
    assert close(home.folder / "full-whole", home.folder / "full")


@pytest.mark.ci
def test_a_state_of_two_is_read_by_two_one_and_three(home):
    assert home.same("full", "by-2")
    for processes in (1, 3):
        assert close(home.folder / "full", home.folder / f"by-{processes}"), processes
