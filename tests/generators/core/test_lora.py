"""LoRA and full policies: the whole change from the base, the same in stock diffusers, with its reference beside it."""

import json
from functools import partial
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from generators.core import lora
from generators.core.size import VideoSize
from rl.objectives import get_objective
from rl.training.config import configure
from rl.training.policies import make_trainable
from tests.support.tiny import load_wan
from tests.support.training import CONFIG

TARGETS = ["attn1.to_q", "attn1.to_out.0", "attn2.to_k", "ffn.net.0.proj", "ffn.net.2"]


@pytest.fixture
def wan(tiny_wan):
    return load_wan(tiny_wan)


@pytest.fixture(scope="module")
def inputs(tiny_wan):
    """Conditions of two prompts, those of the empty caption, and noise."""
    wan = load_wan(tiny_wan)
    text = wan.encode_text(["a hand lifts the cup", "ball drops into the box", ""])["text"]
    return {"text": text[:2]}, {"text": text[2]}, wan.draw_noise([1, 2], wan.latent_shape)


def predict(generator, inputs):
    conditions, _, noise = inputs
    return generator.predict(noise, torch.tensor([0.3, 0.8]), conditions)


def sample(generator, inputs):
    return generator.sample(*inputs, steps=3, guidance=2.0, solver="unipc")


def sample_with_stock(pipe, inputs):
    conditions, empty, noise = inputs
    embeddings = conditions["text"]
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt_embeds=embeddings, negative_prompt_embeds=empty["text"].expand_as(embeddings), latents=noise,
        num_frames=5, height=16, width=16, num_inference_steps=3, guidance_scale=2.0, output_type="latent",
    ).frames  # fmt: skip


def train_a_little(transformer, seed=0):
    """Moves every trainable parameter by noise, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in lora.trainable_parameters(transformer):
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)


def save_policy(transformer, folder, save=lora.save):
    save(transformer, folder)
    (folder / "policy.json").write_text(json.dumps({"start": "base"}))


@pytest.fixture
def trained(wan, tmp_path):
    """A folder of a first-round policy, rank 4 and alpha 8."""
    lora.attach(wan.component("transformer"), rank=4, alpha=8, targets=TARGETS, seed=1)
    train_a_little(wan.component("transformer"))
    save_policy(wan.component("transformer"), tmp_path / "rwr1")
    return tmp_path / "rwr1"


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def differ(actual, expected):
    return (actual - expected).abs().max() > 1e-2


def test_a_new_adapter_changes_nothing_yet_and_is_all_that_trains(wan, inputs):
    base = predict(wan, inputs)
    lora.attach(wan.component("transformer"), rank=4, alpha=8, targets=TARGETS, seed=1)
    assert torch.equal(predict(wan, inputs), base)
    # 2 blocks, 5 targets, A and B each; rank 4 on widths 24 and 48
    widths = [24 + 24] * 3 + [24 + 48] * 2
    parameters = lora.trainable_parameters(wan.component("transformer"))
    assert sum(parameter.numel() for parameter in parameters) == 2 * 4 * sum(widths)


def test_an_adapter_is_initialised_by_its_seed_alone(tiny_wan):
    def adapter(seed, globally):
        transformer = load_wan(tiny_wan, parts=("denoiser",)).component("transformer")
        torch.manual_seed(globally)
        lora.attach(transformer, rank=4, alpha=4, targets=TARGETS, seed=seed)
        return torch.cat([parameter.flatten() for parameter in lora.trainable_parameters(transformer)])

    assert torch.equal(adapter(1, globally=0), adapter(1, globally=5))
    assert not torch.equal(adapter(1, globally=0), adapter(2, globally=0))


def test_a_new_adapter_starts_with_b_at_zero_and_a_at_random(wan):
    lora.attach(wan.component("transformer"), rank=4, alpha=4, targets=TARGETS, seed=1)
    attention = wan.component("transformer").blocks[0].attn1.to_q
    assert not attention.lora_B[lora.POLICY].weight.any()
    # kaiming_uniform(a=sqrt 5) on 24 inputs draws from ± sqrt(6 / ((1 + 5) · 24)) = ± 0.204
    assert 0.15 < attention.lora_A[lora.POLICY].weight.abs().max() <= 0.2042


def test_only_the_policy_of_a_second_round_is_trainable(tiny_wan, trained):
    second, applied = (load_wan(tiny_wan, parts=("denoiser",)).component("transformer") for _ in range(2))
    lora.load_start(second, trained)
    trainable = [name for name, parameter in second.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * len(TARGETS) * 2 and all(f".{lora.POLICY}." in name for name in trainable)
    lora.load_adapter(applied, trained)
    with pytest.raises(lora.LoraError, match="no trainable parameter"):
        lora.trainable_parameters(applied)


def test_a_target_that_matches_nothing_is_an_error_that_lists_what_exists(wan):
    for target in ("ff.net.0.proj", "ffn.net", "to_qq", "attn1"):
        with pytest.raises(
            lora.LoraError, match=rf"no linear layer: {target}; .*attn1.to_q, .*ffn.net.0.proj, ffn.net.2"
        ):
            lora.attach(wan.component("transformer"), rank=4, alpha=4, targets=["attn1.to_q", target], seed=0)
        assert not hasattr(wan.component("transformer"), "peft_config"), target


def test_the_familys_own_targets_match(wan):
    lora.attach(wan.component("transformer"), rank=2, alpha=2, targets=wan.lora_targets, seed=0)
    assert len(lora.trainable_parameters(wan.component("transformer"))) == 2 * len(wan.lora_targets) * 2


def test_adapters_over_bfloat16_weights_are_float32(tiny_wan, inputs, trained):
    for attach in (
        lambda transformer: lora.attach(transformer, rank=4, alpha=8, targets=TARGETS, seed=1),
        lambda transformer: lora.load_start(transformer, trained),
    ):
        half = load_wan(tiny_wan, dtype="bfloat16", parts=("denoiser",))
        attach(half.component("transformer"))
        assert {parameter.dtype for parameter in lora.trainable_parameters(half.component("transformer"))} == {
            torch.float32
        }
        predict(half, inputs).sum().backward()


def test_the_saved_lora_is_the_same_policy_in_the_stock_pipeline(wan, tiny_wan, inputs, trained):
    ours = sample(wan, inputs)  # alpha is twice the rank: taken for the rank, the change would be half
    pipe = diffusers.WanPipeline.from_pretrained(tiny_wan)
    base = sample_with_stock(pipe, inputs)
    pipe.load_lora_weights(trained)
    close(sample_with_stock(pipe, inputs), ours)
    assert differ(ours, base)


def test_a_second_round_continues_one_adapter_that_is_still_the_whole_change(tiny_wan, inputs, trained, tmp_path):
    wan = load_wan(tiny_wan, parts=("denoiser",))
    lora.load_start(wan.component("transformer"), trained)
    start = sample(wan, inputs)
    train_a_little(wan.component("transformer"), seed=1)
    ours = sample(wan, inputs)
    lora.save(wan.component("transformer"), tmp_path / "rwr2")

    pipe = diffusers.WanPipeline.from_pretrained(tiny_wan)
    pipe.load_lora_weights(tmp_path / "rwr2")
    close(sample_with_stock(pipe, inputs), ours)
    assert differ(ours, start)
    assert (tmp_path / "rwr2" / lora.LORA_FILE).stat().st_size == (trained / lora.LORA_FILE).stat().st_size


def test_equal_adapters_give_equal_bytes(wan, trained, tmp_path):
    lora.save(wan.component("transformer"), tmp_path / "again")
    assert (tmp_path / "again" / lora.LORA_FILE).read_bytes() == (trained / lora.LORA_FILE).read_bytes()
    with safe_open(trained / lora.LORA_FILE, framework="pt") as file:
        (facts,) = file.metadata().values()  # one entry: the order of several is left to chance
    assert json.loads(facts) == {
        "transformer.r": 4,
        "transformer.lora_alpha": 8,
        "transformer.lora_dropout": 0.0,
        "transformer.target_modules": sorted(TARGETS),
    }


def test_the_reference_of_a_first_round_is_the_base(wan, inputs):
    base = predict(wan, inputs)
    lora.attach(wan.component("transformer"), rank=4, alpha=8, targets=TARGETS, seed=1)
    train_a_little(wan.component("transformer"))
    policy = predict(wan, inputs)
    with lora.reference(wan.component("transformer")):
        assert torch.equal(predict(wan, inputs), base)
    assert torch.equal(predict(wan, inputs), policy) and differ(policy, base)


def test_the_reference_of_a_second_round_is_its_start(wan, tiny_wan, inputs, trained):
    start, second = predict(wan, inputs), load_wan(tiny_wan, parts=("denoiser",))
    lora.load_start(second.component("transformer"), trained)
    close(predict(second, inputs), start)
    train_a_little(second.component("transformer"), seed=1)
    policy = predict(second, inputs)
    with lora.reference(second.component("transformer")):
        close(predict(second, inputs), start)
    assert torch.equal(predict(second, inputs), policy) and differ(policy, start)


@pytest.mark.parametrize("mode", ["first round", "second round", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_asking_the_reference_leaves_the_gradient_of_the_policy_alone(tiny_wan, inputs, trained, mode, checkpointing):
    wan = load_wan(tiny_wan, parts=("denoiser",))
    {
        "first round": lambda: lora.attach(wan.component("transformer"), rank=4, alpha=8, targets=TARGETS, seed=1),
        "second round": lambda: lora.load_start(wan.component("transformer"), trained),
        "full": lambda: lora.train_full(wan.component("transformer")),
    }[mode]()
    train_a_little(wan.component("transformer"))
    if checkpointing:
        wan.component("transformer").enable_gradient_checkpointing()
    parameters = lora.trainable_parameters(wan.component("transformer"))
    expected = torch.autograd.grad(predict(wan, inputs).square().mean(), parameters)

    loss = predict(wan, inputs).square().mean()
    with lora.reference(wan.component("transformer")), torch.no_grad():
        predict(wan, inputs)
    assert [id(p) for p in lora.trainable_parameters(wan.component("transformer"))] == [id(p) for p in parameters]
    gradients = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


def test_an_error_under_the_reference_still_brings_the_policy_back(wan, inputs):
    lora.attach(wan.component("transformer"), rank=4, alpha=8, targets=TARGETS, seed=1)
    train_a_little(wan.component("transformer"))
    policy = predict(wan, inputs)
    with pytest.raises(KeyError), lora.reference(wan.component("transformer")):
        raise KeyError
    assert torch.equal(predict(wan, inputs), policy)
    assert lora.trainable_parameters(wan.component("transformer"))


def test_fusing_changes_no_prediction(wan, inputs, trained):
    unfused = predict(wan, inputs)
    lora.fuse(wan.component("transformer"))
    close(predict(wan, inputs), unfused)
    assert not any("lora" in name for name, _ in wan.component("transformer").named_modules())


def test_a_policy_folder_makes_the_generator_sample_as_it(wan, tiny_wan, inputs, trained):
    other = load_wan(tiny_wan)
    lora.apply_policy(other, trained)
    close(sample(other, inputs), sample(wan, inputs))


def test_the_base_policy_changes_nothing(wan, inputs, tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps({"family": "wan"}))
    before = predict(wan, inputs)
    lora.apply_policy(wan, tmp_path)
    assert torch.equal(predict(wan, inputs), before)


def test_a_policy_that_names_a_shift_is_sampled_under_it_and_another_under_the_generators(wan, tmp_path):
    for facts, shift in (({}, wan.process.shift), ({"sampling": {"shift": None}}, wan.process.shift),
                         ({"sampling": {"shift": 5.0}}, 5.0)):  # fmt: skip
        (tmp_path / "policy.json").write_text(json.dumps(facts))
        assert lora.with_own_sampling(wan, tmp_path).process.shift == shift
    assert wan.process.shift != 5.0


def test_the_bases_unconditional_branch_puts_the_lora_on_the_conditional_branch_alone(tiny_wan, inputs, trained):
    conditions, empty, noise = inputs
    (trained / "policy.json").write_text(json.dumps({"start": "base", "sampling": {"unconditional": "base"}}))
    policy, base, applied = (load_wan(tiny_wan) for _ in range(3))
    lora.apply_policy(policy, trained)
    applied = lora.with_own_sampling(applied, trained)
    lora.apply_policy(applied, trained)
    timestep, unwanted = torch.tensor(500.0), {"text": empty["text"].expand_as(conditions["text"])}

    for guidance in (1.0, 2.0, 3.5):
        with torch.no_grad():
            found = applied.guided(conditions, empty, guidance)(noise, timestep)
            conditional = policy.guided(conditions, {}, 1.0)(noise, timestep)
            unconditional = base.guided(unwanted, {}, 1.0)(noise, timestep)
        close(found, (1 - guidance) * unconditional + guidance * conditional)
    assert differ(sample(applied, inputs), sample(policy, inputs))


def test_of_the_bases_unconditional_branch_the_gradient_is_the_conditional_ones_times_the_guidance(
    tiny_wan, inputs, trained
):
    conditions, empty, noise = inputs
    wan, timestep = load_wan(tiny_wan), torch.tensor(500.0)
    lora.load_start(wan.component("transformer"), trained)
    parameters = lora.trainable_parameters(wan.component("transformer"))
    frozen = lora.sampling_as(wan, {"unconditional": "base"})

    found = torch.autograd.grad(frozen.guided(conditions, empty, 3.0)(noise, timestep).sum(), parameters)
    alone = torch.autograd.grad(wan.guided(conditions, empty, 1.0)(noise, timestep).sum(), parameters)
    both = torch.autograd.grad(wan.guided(conditions, empty, 3.0)(noise, timestep).sum(), parameters)
    for one, conditional in zip(found, alone, strict=True):
        torch.testing.assert_close(one, 3 * conditional, atol=1e-3, rtol=1e-3)
    assert any(differ(one, other) for one, other in zip(found, both, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)


def test_the_reference_predicts_without_the_prompt_as_the_base_too(tiny_wan, inputs, trained):
    """Of a policy that continues another: its reference is the other, and its unconditional branch the base's."""
    conditions, empty, noise = inputs
    second, base = load_wan(tiny_wan), load_wan(tiny_wan)
    lora.load_start(second.component("transformer"), trained)
    first = predict(second, inputs)
    train_a_little(second.component("transformer"))
    policy = predict(second, inputs)
    with torch.no_grad():
        with lora.reference(second.component("transformer")):
            with lora.as_base(second):
                close(predict(second, inputs), predict(base, inputs))
            close(predict(second, inputs), first)
        close(predict(second, inputs), policy)
    assert differ(policy, first)


def test_what_switches_a_lora_off_is_refused_where_all_weights_are_trained(wan, tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps({"sampling": {"unconditional": "base"}}))
    full = configure(get_objective("sft"), CONFIG | {"full": True})
    with pytest.raises(ValueError, match="full: true, but the start or the recipe has unconditional: base"):
        make_trainable(lora.with_own_sampling(wan, tmp_path), full, tmp_path)


def test_a_full_policy_is_the_same_in_stock_diffusers(wan, tiny_wan, inputs, tmp_path):
    base = predict(wan, inputs)
    lora.train_full(wan.component("transformer"))
    train_a_little(wan.component("transformer"))
    save_policy(wan.component("transformer"), tmp_path, save=partial(lora.save_full, denoiser="transformer"))
    with lora.reference(wan.component("transformer")):
        assert torch.equal(predict(wan, inputs), base)
    assert differ(predict(wan, inputs), base)

    applied = load_wan(tiny_wan)
    lora.apply_policy(applied, tmp_path)
    assert torch.equal(sample(applied, inputs), sample(wan, inputs))
    transformer = diffusers.WanTransformer3DModel.from_pretrained(tmp_path, subfolder="transformer")
    pipe = diffusers.WanPipeline.from_pretrained(tiny_wan, transformer=transformer)
    close(sample_with_stock(pipe, inputs), sample(wan, inputs))


def test_full_fine_tuning_of_bfloat16_weights_is_an_error(tiny_wan):
    half = load_wan(tiny_wan, dtype="bfloat16", parts=("denoiser",))
    with pytest.raises(lora.LoraError, match=r"generator\.dtype: float32"):
        lora.train_full(half.component("transformer"))


def test_a_folder_that_holds_no_policy_is_an_error(wan, tmp_path):
    with pytest.raises(lora.LoraError, match=r"no policy\.json"):
        lora.apply_policy(wan, tmp_path)
    (tmp_path / "policy.json").write_text(json.dumps({"start": "base"}))
    with pytest.raises(lora.LoraError, match="with neither"):
        lora.apply_policy(wan, tmp_path)


def test_a_lora_of_unknown_scale_or_of_another_model_is_an_error(tiny_wan, tiny_wan_with, trained, tmp_path):
    fresh = load_wan(tiny_wan, parts=("denoiser",)).component("transformer")
    with pytest.raises(lora.LoraError, match="no such file"):
        lora.load_adapter(fresh, tmp_path / "absent")
    (tmp_path / "bare").mkdir()
    save_file({"transformer.a.lora_A.weight": torch.zeros(1)}, tmp_path / "bare" / lora.LORA_FILE)
    with pytest.raises(lora.LoraError, match="metadata lacks lora_alpha, r, target_modules"):
        lora.load_adapter(fresh, tmp_path / "bare")
    deeper = load_wan(tiny_wan_with(num_layers=3), parts=("denoiser",)).component("transformer")
    with pytest.raises(lora.LoraError, match="does not fit this transformer; 10 keys differ"):
        lora.load_adapter(deeper, trained)


# Several denoisers


@pytest.fixture
def two(tiny_model):
    """A tiny Wan2.2 of two transformers, and its folder."""
    return load_two(tiny_model)


def load_two(tiny_model):
    return load_wan(tiny_model("wan2.2-t2v"), VideoSize(9, 32, 32, 8.0), max_prompt_tokens=16, parts=("denoiser",))


def weights(generator, name):
    return generator.component(name).blocks[0].attn1.to_q.weight.clone()


def test_a_policy_that_lacks_a_denoiser_is_refused_unless_it_says_which_were_trained(two, tmp_path):
    lora.attach(two.component("transformer"), rank=2, alpha=2, targets=["attn1.to_q"], seed=1)
    train_a_little(two.component("transformer"))
    save_policy(two.component("transformer"), tmp_path)
    two.component("transformer").delete_adapters([lora.POLICY])
    with pytest.raises(lora.LoraError, match="full weights of transformer_2; this generator has transformer, transf"):
        lora.apply_policy(two, tmp_path)
    before = {name: weights(two, name) for name in two.denoisers}
    (tmp_path / "policy.json").write_text(json.dumps({"start": "base", "config": {"denoisers": ["transformer"]}}))
    lora.apply_policy(two, tmp_path)
    assert not torch.equal(weights(two, "transformer"), before["transformer"])
    assert torch.equal(weights(two, "transformer_2"), before["transformer_2"])


def test_the_lora_of_a_denoiser_that_is_not_trained_is_copied_from_the_start(two, tiny_model, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "policy.json").write_text("{}")
    common = CONFIG | {"lora_rank": 2, "lora_alpha": 2}

    def trained(start, out, **changes):
        generator = load_two(tiny_model)
        policy = make_trainable(generator, configure(get_objective("sft"), common | changes), start)
        for parameter in policy.parameters.values():
            parameter.data += 0.1
        policy.save(out)
        (out / "policy.json").write_text(json.dumps({"start": start.name}))
        return policy

    both = trained(base, tmp_path / "both")
    assert {name.partition(".")[0] for name in both.parameters} == {"transformer", "transformer_2"}
    assert both.trains(torch.tensor([0.1])) and both.trains(torch.tensor([0.99]))
    one = trained(tmp_path / "both", tmp_path / "one", denoisers=["transformer_2"])
    assert {name.partition(".")[0] for name in one.parameters} == {"transformer_2"}
    assert one.trains(torch.tensor([0.1])) and not one.trains(torch.tensor([two.boundary]))
    files = {name: lora.lora_folder(Path(name), "transformer") / lora.LORA_FILE for name in ("both", "one")}
    assert (tmp_path / files["both"]).read_bytes() == (tmp_path / files["one"]).read_bytes()
    files = {name: lora.lora_folder(Path(name), "transformer_2") / lora.LORA_FILE for name in ("both", "one")}
    assert (tmp_path / files["both"]).read_bytes() != (tmp_path / files["one"]).read_bytes()
    with pytest.raises(ValueError, match="denoisers: found unet; this generator has transformer, transformer_2"):
        trained(base, tmp_path / "none", denoisers=["unet"])


def test_a_policy_of_another_family_is_an_error(wan, tmp_path):
    (tmp_path / "policy.json").write_text(json.dumps({"start": "base", "generator": {"family": "cogvideox"}}))
    with pytest.raises(lora.LoraError, match="a policy of a cogvideox generator, and this one is wan"):
        lora.apply_policy(wan, tmp_path)


def test_rows_on_both_sides_of_the_boundary_are_what_they_are_alone(two):
    """And each is the answer of the denoiser whose turn it is."""
    boundary = two.boundary
    t = torch.tensor([boundary + 0.05, boundary - 0.3, boundary + 0.01, boundary - 0.05])
    width = two.component("transformer").config.text_dim
    text = torch.randn(4, 16, width, generator=torch.Generator().manual_seed(0))
    noise = two.draw_noise([1, 2, 3, 4], two.latent_shape)
    together = two.predict(noise, t, {"text": text})
    for row, name in enumerate(("transformer", "transformer_2", "transformer", "transformer_2")):
        own = slice(row, row + 1)
        close(together[own], two.predict(noise[own], t[own], {"text": text[own]}))
        close(together[own], two.component(name)(noise[own], 1000 * t[own], text[own]).sample)
