"""What the families of U-Nets have beside what every family is tested for: PIA's likeness, windows, and refusals."""

import json
import shutil

import pytest
import torch

from generators.core.decoding import Decoding, decode_frames
from generators.core.load import examine_generator, load_generator
from generators.core.size import VideoSize
from generators.families.animatediff import LIKENESS
from generators.tiny.variants import VARIANTS


def test_pias_likeness_is_the_pipelines_of_motion_scale_0():
    from diffusers.pipelines.deprecated.pia.pipeline_pia import prepare_mask_coef_by_statistics

    expected = prepare_mask_coef_by_statistics(16, 0, 0)
    assert [*LIKENESS, *[LIKENESS[-1]] * (16 - len(LIKENESS))] == expected


@pytest.mark.parametrize("name", ["animatediff", "unet3d-pixels"])
def test_windows_of_whole_frames_equal_the_exact_decode(name, tiny_model):
    """Frames are decoded apart anyway, so windows over time change nothing."""
    generator = load_generator(
        VARIANTS[name].family, str(tiny_model(name)), VideoSize(6, 32, 32, 8), max_prompt_tokens=16, parts=("vae",)
    )
    latents = generator.draw_noise([3], generator.latent_shape)
    settings = {"window": 2, "overlap": 1, "tile": None, "tile_overlap": 0, "offload": False, "straight_through": False}
    windowed, exact = (
        decode_frames(generator, latents, [0, 3, 4], Decoding(mode, **settings)) for mode in ("windowed", "exact")
    )

    torch.testing.assert_close(windowed, exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exact, generator.decode_float(latents)[0][[0, 3, 4]], atol=1e-5, rtol=1e-5)


REFUSED = (
    ("animatediff", "unet", {"in_channels": 9}, "whose unet takes 5 channels beside the latents, expected 0"),
    ("pia", "unet", {"in_channels": 4}, "whose unet takes 0 channels beside the latents, expected 5"),
    ("unet3d", "unet", {"in_channels": 5}, "whose unet takes 1 channels beside the latents, expected 0 or 4"),
    ("unet3d-pixels", "unet", {"out_channels": 4}, "whose unet makes 4 channels, expected 3 of pixels"),
    ("unet3d", "vae", {"latent_channels": 8}, "whose unet makes 4 channels, expected 8 of its vae"),
)


@pytest.mark.parametrize(("name", "component", "change", "message"), REFUSED)
def test_a_unet_whose_channels_do_not_fit_is_refused(name, component, change, message, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model(name), tmp_path / "model")
    file = folder / component / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"^path: .* {message}"):
        examine_generator(VARIANTS[name].family, str(folder), VideoSize(9, 32, 32, 8), max_prompt_tokens=16)


def test_a_plain_stable_diffusion_unet_is_refused_by_its_class(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model("animatediff"), tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text()) | {"unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="whose unet is UNet2DConditionModel, expected UNetMotionModel; .* saved"):
        examine_generator("animatediff", str(folder), VideoSize(9, 32, 32, 8), max_prompt_tokens=16)
