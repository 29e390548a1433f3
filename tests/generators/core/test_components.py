"""Components that lie elsewhere than in the generator's own folder: FramePack as it is published."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data.config import read_config
from generators.core.checkpoint import open_checkpoint
from generators.core.identity import identify
from generators.core.load import examine_generator, load_generator
from generators.core.size import VideoSize
from pipeline.check import check_generator
from pipeline.configs import GeneratorConfig
from pipeline.summary import generator_line
from tests.support.stock import first_frame

SIZE = VideoSize(37, 32, 32, 8)


@pytest.fixture
def published(tiny_model, tmp_path) -> dict:
    """Section `generator` over three folders like those on the Hub: HunyuanVideo, transformer, image encoder."""
    shutil.copytree(tiny_model("hunyuan-video-t2v"), tmp_path / "HunyuanVideo")
    shutil.copytree(tiny_model("framepack-f1") / "transformer", tmp_path / "FramePack_F1")
    config = tmp_path / "FramePack_F1/config.json"
    named = json.loads(config.read_text()) | {"_class_name": "HunyuanVideoTransformer3DModelPacked"}
    config.write_text(json.dumps(named))
    for name in ("image_encoder", "feature_extractor"):
        shutil.copytree(tiny_model("framepack-f1") / name, tmp_path / "flux_redux_bfl" / name)
    redux = str(tmp_path / "flux_redux_bfl")
    return {
        "family": "framepack_f1", "path": str(tmp_path / "HunyuanVideo"), "revision": None, "dtype": "float32",
        "max_prompt_tokens": 16,
        "components": {
            "transformer": {"path": str(tmp_path / "FramePack_F1")},
            "image_encoder": {"path": redux, "subfolder": "image_encoder"},
            "feature_extractor": {"path": redux, "subfolder": "feature_extractor"},
        },
    }  # fmt: skip


def config(published: dict) -> GeneratorConfig:
    return read_config(GeneratorConfig, published, "generator")


def test_a_generator_of_three_folders_makes_the_clip_of_one(published, tiny_model):
    image = torch.frombuffer(bytearray(first_frame().tobytes()), dtype=torch.uint8).view(1, 32, 32, 3)
    clips = []
    for settings in (asdict(config(published)), {"family": "framepack_f1", "path": tiny_model("framepack-f1")}):
        generator = load_generator(**settings | {"max_prompt_tokens": 16}, size=SIZE)
        conditions = generator.encode_text(["ball"]) | generator.encode_image(image)
        noise = generator.draw_noise([1], generator.latent_shape)
        clips.append(generator.sample(conditions, {}, noise, 2, 1.0, "euler"))

    assert torch.equal(*clips)


def test_the_checkpoint_knows_where_its_components_lie(published, tiny_model):
    generator = check_generator(config(published), SIZE)
    checkpoint, whole = generator.checkpoint, open_checkpoint(str(tiny_model("framepack-f1")), None)

    assert checkpoint.class_of("transformer") == "HunyuanVideoFramepackTransformer3DModel"
    assert checkpoint.index["image_encoder"] == ["transformers", "SiglipVisionModel"]
    assert checkpoint.modules("transformer") == whole.modules("transformer")
    assert checkpoint.size == whole.size  # without the transformer that HunyuanVideo has
    assert "transformer of " + published["components"]["transformer"]["path"] in generator_line(
        config(published), generator
    )


def test_the_identity_has_that_of_every_component(published):
    components = asdict(config(published))["components"]
    arguments = (published["family"], published["path"], None)
    found = identify(*arguments, components)
    alone = identify(*arguments)

    assert "components" not in alone and alone == identify(*arguments, None)
    assert found["fingerprint"] != alone["fingerprint"]
    assert found["components"]["image_encoder"]["subfolder"] == "image_encoder"
    prints = {name: one["fingerprint"] for name, one in found["components"].items()}
    assert len({*prints.values()}) == 3
    with Path(components["image_encoder"]["path"], "image_encoder", "config.json").open("a") as file:
        file.write(" ")
    again = identify(*arguments, components)
    changed = {name for name, one in again["components"].items() if one["fingerprint"] != prints[name]}
    assert changed == {"image_encoder"} and again["fingerprint"] != found["fingerprint"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transfomer": {"path": "x/y"}}, "generator.components: 'transfomer' is none of family framepack_f1; known "),
        ({"transformer": {"path": "nowhere"}}, "generator.components.transformer.path: 'nowhere' is no folder, and no"),
        ({"transformer": {"path": "{}", "revision": "main"}}, "generator.components.transformer.revision: 'main', but"),
        ({"image_encoder": {"path": "{}"}}, "generator.path: .* whose image_encoder is HunyuanVideoFramepackTrans"),
        ({"image_encoder": {"path": "{}", "subfolder": "vision"}}, "generator.components.image_encoder.path: .*vision"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named_by_its_key(changes, message, published):
    folder = published["components"]["transformer"]["path"]
    for entry in changes.values():
        entry["path"] = entry["path"].format(folder)
    published["components"] |= changes
    with pytest.raises(ValueError, match=f"^{message}"):
        check_generator(config(published), SIZE)


def test_half_a_component_is_refused(published):
    folder = Path(published["components"]["transformer"]["path"])
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^components.transformer.path: .*FramePack_F1 has no weights; wanted is"):
        examine_generator(**asdict(config(published)), size=SIZE)
