"""Estimates of memory against hand-worked numbers, loaded modules and what autograd keeps."""

import pytest
import torch
from torch import nn

from generators.core import lora, memory
from generators.core.load import examine_generator, load_generator
from generators.core.size import VideoSize
from generators.tiny.variants import VARIANTS

NAMES = ("wan2.2-t2v", "cogvideox-5b-i2v")


def of(name: str, folder, dtype: str = "float32") -> dict:
    variant = VARIANTS[name]
    return {
        "family": variant.family,
        "path": str(folder(name)),
        "size": VideoSize(variant.num_frames, variant.height, variant.width, 8),
        "max_prompt_tokens": variant.max_prompt_tokens,
    }


@pytest.mark.parametrize("name", NAMES)
def test_parameters_bytes_and_lora_equal_the_loaded_modules(name, tiny_model):
    generator = load_generator(**of(name, tiny_model), dtype="bfloat16")
    modules = {key: one for key, one in generator.components.items() if isinstance(one, nn.Module)}
    assert len(modules) >= 3
    for key, module in modules.items():
        built = memory.on_meta(generator.checkpoint, key)
        assert {one.device.type for one in built.parameters()} == {"meta"}
        assert memory.parameters_of(built) == memory.parameters_of(module)
        dtype = torch.float32 if key == "vae" else torch.bfloat16
        assert memory.weight_bytes(built, dtype) == sum(p.numel() * p.element_size() for p in module.parameters())
    for key, module in generator.denoisers.items():
        counted = memory.lora_parameters(memory.on_meta(generator.checkpoint, key), 4, generator.lora_targets)
        lora.attach(module, 4, 4.0, generator.lora_targets, seed=0)
        assert counted == sum(one.numel() for one in lora.trainable_parameters(module))


def test_a_lora_by_hand_and_a_target_that_matches_nothing():
    module = nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(7, 2), "c": nn.LayerNorm(3)})
    assert memory.lora_parameters(module, 2, ("a",)) == 2 * (3 + 5)
    assert memory.lora_parameters(module, 2, ("a", "b")) == 2 * (3 + 5) + 2 * (7 + 2)
    with pytest.raises(ValueError, match="lora_targets: c matches no linear layer"):
        memory.lora_parameters(module, 2, ("c",))


def test_activations_by_hand():
    assert memory.training_activations(2, 10, 8, 3, 4, checkpointing=False).bytes == 2 * 10 * 8 * 4 * 3 * memory.FACTOR
    assert memory.training_activations(2, 10, 8, 3, 4, checkpointing=True).bytes == 2 * 10 * 8 * 4 * (3 + memory.FACTOR)
    assert memory.sampling_activations(2, 10, 8, 2).bytes == 2 * 10 * 8 * 2 * memory.FACTOR


def test_width_and_layers_and_what_a_config_lacks():
    heads = {"num_attention_heads": 2, "attention_head_dim": 12}
    assert memory.width_and_layers({**heads, "num_layers": 3, "num_single_layers": 4}) == (24, 7)
    assert memory.width_and_layers({"model_dim": 16, "num_visual_blocks": 2}) == (16, 2)
    with pytest.raises(ValueError, match="none of num_layers"):
        memory.width_and_layers(heads)
    with pytest.raises(ValueError, match="neither num_attention_heads and attention_head_dim nor model_dim"):
        memory.width_and_layers({"num_layers": 3, "attention_head_dim": (4, 8)})


def test_live_bytes_counts_what_is_alive_at_once():
    def two_of_three() -> torch.Tensor:
        first = torch.ones(10) * 2  # 40 bytes, and 40 of the ones until the product is made
        second = first + 1  # 80 bytes
        del first
        return second.view(5, 2) + 1  # a view takes nothing; 80 bytes

    assert memory.live_bytes(two_of_three) == 80


@pytest.mark.parametrize("name", NAMES)
def test_decoding_on_meta_holds_what_decoding_holds(name, tiny_model):
    generator = load_generator(**of(name, tiny_model), parts=("vae",))
    latents = torch.zeros(1, *generator.latent_shape)
    item = memory.decoding(examine_generator(**of(name, tiny_model)), clips=1)
    assert item.bytes == memory.live_bytes(lambda: generator._pixels(latents))


def test_full_training_by_hand(tiny_model):
    name = "wan2.2-t2v"
    generator = examine_generator(**of(name, tiny_model))
    modules = {key: memory.on_meta(generator.checkpoint, key) for key in generator.denoiser_names}
    number = memory.parameters_of(modules["transformer_2"])
    how = memory.TrainingSettings(2, 4, generator.lora_targets, False, ("transformer_2",))
    need = memory.training_need(generator, modules, dict.fromkeys(modules, "denoiser"), torch.bfloat16, how, full=True)
    config = generator.checkpoint.component("transformer_2")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    kept = 2 * generator._tokens() * width * 4 * config["num_layers"] * memory.FACTOR
    assert need.total == number * (4 + 4 + 8 + 4) + kept
    assert need.missing == ()


@pytest.mark.parametrize("name", ("unet3d-pixels", "pia"))
def test_the_activations_of_a_unet_are_what_its_forward_keeps(name, tiny_model):
    """The same forward with weights, on the CPU."""
    generator = load_generator(**of(name, tiny_model), parts=("denoiser",))
    unet = generator.component("unet").requires_grad_(True)
    channels, _, *grid = generator.latent_shape
    conditions = {"text": torch.zeros(1, generator.max_prompt_tokens, unet.config["cross_attention_dim"])}
    conditions["first"] = torch.zeros(1, channels, 1, *grid)
    weights = {one.untyped_storage().data_ptr() for one in unet.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = generator._ask(unet, torch.zeros(1, *generator.latent_shape), torch.zeros(1), conditions)
    assert result.requires_grad
    built = memory.on_meta(generator.checkpoint, "unet")
    item = memory.unet_training_activations(built, generator, 3, torch.float32)
    assert item.bytes == pytest.approx(3 * sum(kept.values()), rel=0.1)  # fused kernels of the CPU keep other tensors
    assert item.bytes > 2 * memory.unet_sampling_activations(built, generator, 3, torch.float32).bytes


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_the_factor_is_near_what_blocks_of_published_proportions_keep(dtype):
    """Two layers of CogVideoX-2b's width, few tokens, so that attention matrices of the meta device weigh little."""
    from diffusers import CogVideoXTransformer3DModel

    with torch.device("meta"):
        module = CogVideoXTransformer3DModel(num_layers=2, use_rotary_positional_embeddings=True)
        module = module.to(dtype).requires_grad_(True)
        latents, text = torch.empty(1, 4, 16, 8, 8, dtype=dtype), torch.empty(1, 4, 4096, dtype=dtype)
        time = torch.zeros(1)
    weights = {one.untyped_storage()._cdata for one in module.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (key := tensor.untyped_storage()._cdata) not in weights:
            kept[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(hidden_states=latents, timestep=time, encoder_hidden_states=text, return_dict=False)
    found = sum(one.untyped_storage().nbytes() for one in kept.values())
    width, layers = memory.width_and_layers(module.config)
    formula = memory.training_activations(1, 64, width, layers, dtype.itemsize, checkpointing=False).bytes
    assert 0.5 < found / formula < 1.5
