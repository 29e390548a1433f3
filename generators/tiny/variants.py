"""The tiny models by name, with the values of params.yaml that fit each."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data.doors import find
from generators.tiny import cogvideox, hunyuan_video, kandinsky5, ltx, unets, wan


@dataclass(frozen=True)
class Variant:
    """One layout of a family: which model it is a small copy of, and what clips it makes."""

    family: str  # generator.family
    like: str  # hub id of the model that has the same classes and layout, or UNPUBLISHED
    image: Literal["none", "optional", "needed"]  # a prompt's first frame
    solver: str
    build: Callable[[], Any]  # gives the diffusers pipeline
    max_prompt_tokens: int = 16
    num_frames: int = 9
    height: int = 32  # pixels
    width: int = 32


def _cogvideox(like: str, release: cogvideox.Release, image: bool) -> Variant:
    needed: Literal["needed", "none"] = "needed" if image else "none"
    return Variant("cogvideox", f"zai-org/{like}", needed, "ddim", partial(cogvideox.cogvideox, release, image))


def _hunyuan_video(like: str, kind: hunyuan_video.Kind) -> Variant:
    needed: Literal["needed", "none"] = "none" if kind == "text" else "needed"
    build = partial(hunyuan_video.hunyuan_video, kind)
    return Variant("hunyuan_video", f"hunyuanvideo-community/{like}", needed, "euler", build)


def _kandinsky5(like: str, image: bool, num_frames: int) -> Variant:
    """With room for the pipeline's negative prompt."""
    needed: Literal["needed", "none"] = "needed" if image else "none"
    build = partial(kandinsky5.kandinsky5, image)
    return Variant("kandinsky5", f"kandinskylab/{like}", needed, "euler", build, 40, num_frames)


def _framepack(family: str, like: str) -> Variant:
    """Of two sections."""
    build = hunyuan_video.framepack
    return Variant(family, f"lllyasviel/{like}", "needed", "euler", build, num_frames=73)


UNPUBLISHED = "no published model"

VARIANTS = {
    "wan2.1-t2v": Variant("wan", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "none", "unipc", wan.wan21_t2v),
    # Its transformer takes the first 512 tokens for text and the others for the image, so there is no other number.
    "wan2.1-i2v": Variant("wan", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "needed", "unipc", wan.wan21_i2v, 512),
    "wan2.2-t2v": Variant("wan", "Wan-AI/Wan2.2-T2V-A14B-Diffusers", "none", "unipc", wan.wan22_t2v),
    "wan2.2-i2v": Variant("wan", "Wan-AI/Wan2.2-I2V-A14B-Diffusers", "needed", "unipc", wan.wan22_i2v),
    "wan2.2-ti2v": Variant("wan", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", "optional", "unipc", wan.wan22_ti2v),
    "cogvideox-2b": _cogvideox("CogVideoX-2b", "2b", image=False),
    "cogvideox-5b": _cogvideox("CogVideoX-5b", "5b", image=False),
    "cogvideox-5b-i2v": _cogvideox("CogVideoX-5b-I2V", "5b", image=True),
    "cogvideox1.5-5b": _cogvideox("CogVideoX1.5-5B", "1.5", image=False),
    "cogvideox1.5-5b-i2v": _cogvideox("CogVideoX1.5-5B-I2V", "1.5", image=True),
    # What is published are motion modules; with a Stable Diffusion 1.5 they make the pipeline.
    "animatediff": Variant(
        "animatediff", "guoyww/animatediff-motion-adapter-v1-5-2", "none", "ddim", partial(unets.animatediff, False)
    ),
    "pia": Variant(
        "animatediff", "openmmlab/PIA-condition-adapter", "needed", "ddim", partial(unets.animatediff, True)
    ),
    "unet3d": Variant("unet3d", "ali-vilab/text-to-video-ms-1.7b", "none", "ddim", partial(unets.unet3d, False)),
    # No hub model has the layout of these two; the second has that of the paper's generator.
    "unet3d-first-frame": Variant("unet3d", UNPUBLISHED, "needed", "ddim", partial(unets.unet3d, True), num_frames=5),
    "unet3d-pixels": Variant(
        "unet3d", UNPUBLISHED, "needed", "ddim", partial(unets.unet3d, True, True), unets.T5_TOKENS, num_frames=3
    ),
    "hunyuan-video-t2v": _hunyuan_video("HunyuanVideo", "text"),
    "hunyuan-video-i2v": _hunyuan_video("HunyuanVideo-I2V", "token_replace"),
    "hunyuan-video-i2v-33ch": _hunyuan_video("HunyuanVideo-I2V-33ch", "latent_concat"),
    # The hub's LTXPipelines are read as LTXImageToVideoPipelines too.
    "ltx0.9-ti2v": Variant("ltx", "Lightricks/LTX-Video", "optional", "euler", partial(ltx.ltx, "0.9")),
    "ltx0.9.1-ti2v": Variant("ltx", "Lightricks/LTX-Video-0.9.1", "optional", "euler", partial(ltx.ltx, "0.9.1")),
    "ltx0.9.7-ti2v": Variant("ltx", "Lightricks/LTX-Video-0.9.7-dev", "optional", "euler", partial(ltx.ltx, "0.9.7")),
    "kandinsky5-t2v": _kandinsky5("Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers", image=False, num_frames=9),
    "kandinsky5-i2v": _kandinsky5("Kandinsky-5.0-I2V-Lite-5s-Diffusers", image=True, num_frames=17),
    # What is published are transformers; with the other components of HunyuanVideo they make the pipeline.
    "framepack-i2v": _framepack("framepack", "FramePackI2V_HY"),
    "framepack-f1": _framepack("framepack_f1", "FramePack_F1_I2V_HY_20250503"),
}


def find_variant(name: str) -> Variant:
    """The variant of that name. Raises ValueError that lists the known ones."""
    if name not in VARIANTS:
        raise ValueError(f"variant {name!r} is unknown; known are {', '.join(VARIANTS)}")
    return VARIANTS[name]


def write_tiny(variant: Variant, out: Path) -> int:
    """Write the variant's diffusers folder, equal bytes every time; gives its number of parameters.

    Raises ValueError where `out` is there already and is no empty folder.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"out: {out} is there already; remove it or name another folder")
    pipeline = variant.build()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        pipeline.save_pretrained(Path(work) / "model")
        os.replace(Path(work) / "model", out)
    modules = (part for part in pipeline.components.values() if hasattr(part, "parameters"))
    return sum(weight.numel() for module in modules for weight in module.parameters())


def params_of(variant: Variant, path: str) -> dict[str, Any]:
    """What to set in params.yaml for clips of the model in the folder `path`, in the form of a preset."""
    from generators.core.families import FAMILIES

    solver = {"steps": 4, "solver": variant.solver}
    family = find(variant.family, FAMILIES, "generator.family", "Family")
    training = {} if family.takes_lora else {"full": True}
    training |= {} if family.checkpoints else {"gradient_checkpointing": False}
    return {
        "generator": {
            "family": variant.family,
            "path": path,
            "revision": None,
            "dtype": "float32",
            "max_prompt_tokens": variant.max_prompt_tokens,
        },
        "video": {"num_frames": variant.num_frames, "height": variant.height, "width": variant.width, "fps": 8},
        "generate": dict(solver),
        "evaluate": {"generate": dict(solver)},
        **({"train": {"common": training}} if training else {}),
    }
