"""What a checkpoint's small files tell before its weights are read: of folders, and of a Hub that runs here."""

import hashlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from generators.core.checkpoint import INDEX
from generators.core.load import examine_generator
from generators.core.size import VideoSize

ROOT = Path(__file__).parents[3]
TEXT_TO_VIDEO = {
    INDEX: {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    },
    "scheduler/scheduler_config.json": {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
    "tokenizer/tokenizer_config.json": {"model_max_length": 512},
    "text_encoder/config.json": {},
    "transformer/config.json": {"patch_size": [1, 2, 2], "in_channels": 16, "image_dim": None},
    "vae/config.json": {"z_dim": 16},  # as Wan2.1's, without its scale factors: 4 in time, 8 in space
}
WEIGHTS = {f"{part}/{name}.safetensors": b"0" * 2048 for part, name in (
    ("transformer", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"),
)}  # fmt: skip
SIZE = VideoSize(num_frames=81, height=480, width=832, fps=16.0)


def write(folder: Path, files: dict[str, object]) -> Path:
    """A folder of these files: bytes as they are, a text as it is, anything else as JSON; None is left out."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        if content is None:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = content if isinstance(content, bytes | str) else json.dumps(content)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def pipeline(**changes: object) -> dict[str, object]:
    """The files of Wan2.1 with other entries in model_index.json."""
    return TEXT_TO_VIDEO | WEIGHTS | {INDEX: TEXT_TO_VIDEO[INDEX] | changes}


def examine(path: Path | str, revision: str | None = None, max_prompt_tokens: int = 512, **size: int):
    return examine_generator("wan", str(path), replace(SIZE, **size), revision, max_prompt_tokens)


def test_the_layout_of_wan_2_1_is_read(tmp_path):
    found = examine(write(tmp_path / "wan", pipeline()))

    assert found.checkpoint.index["_class_name"] == "WanPipeline"
    assert found.checkpoint.size == 3 * 2048
    assert (found.latent_shape, found.denoiser_names, found.image) == ((16, 21, 60, 104), ["transformer"], "none")
    assert not found.components


def test_what_no_family_reads_is_named_with_what_is_read(tmp_path):
    """Each pipeline by its model_index.json and small configs, each folder by its files."""
    lora, sharded = b"0" * 2048, {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    twice = ["diffusers", "WanTransformer3DModel"]
    image = {"_class_name": "WanImageToVideoPipeline"}
    config = TEXT_TO_VIDEO["transformer/config.json"]
    channels = {"transformer/config.json": config | {"in_channels": 33}}
    last = {"transformer/config.json": config | {"in_channels": 36, "pos_embed_seq_len": 514}}
    transformer, vae, _ = WEIGHTS
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    cases = {
        "one-denoiser": (pipeline(boundary_ratio=0.875), "a WanPipeline with boundary_ratio and no transformer_2"),
        "no-boundary": (pipeline(transformer_2=twice), "a WanPipeline with transformer_2 and no boundary_ratio"),
        "half": (pipeline(boundary_ratio=0.875, transformer_2=twice), "has no folder transformer_2"),
        "patch": (
            pipeline(expand_timesteps=True) | {"transformer/config.json": config | {"patch_size": [2, 2, 2]}},
            "with expand_timesteps and patches other than 1 x 2 x 2",
        ),
        "ltx": (
            pipeline(_class_name="LTXPipeline"),
            "is a LTXPipeline, and family wan does not read it. Family wan reads WanPipeline, "
            "WanImageToVideoPipeline; cogvideox reads CogVideoXPipeline, CogVideoXImageToVideoPipeline",
        ),
        "cogvideox": (pipeline(_class_name="CogVideoXPipeline"), "is a CogVideoXPipeline, and family wan does not"),
        "nameless": (pipeline(_class_name=None), "is a None, and family wan does not read it"),
        "encoder": (pipeline(text_encoder=["transformers", "T5EncoderModel"]), "whose text_encoder is T5EncoderModel"),
        "channels": (pipeline(**image) | channels, "whose transformer takes 17 channels beside the latents"),
        "last-frame": (pipeline(**image) | last, "that also wants the last frame (pos_embed_seq_len)"),
        "empty": ({}, "is an empty folder; wanted is a diffusers pipeline folder"),
        "lora": ({"pytorch_lora_weights.safetensors": lora}, "is a LoRA (a policy), not the generator under it"),
        "authors": ({"config.json": {"_class_name": "WanModel"}, "a.safetensors": lora}, "is a single WanModel, or a"),
        "judge": ({"config.json": {"architectures": ["Qwen2_5_VL"]}}, "is a transformers model (Qwen2_5_VL), no video"),
        "single": ({"wan.safetensors": lora}, "is a single-file checkpoint (wan.safetensors), which is not read"),
        "nested": ({f"inner/{INDEX}": {}}, f"has no model_index.json, but {tmp_path}/nested/inner has one"),
        "other": ({"notes.txt": "a"}, "has no model_index.json; wanted is"),
        "not-json": (pipeline() | {INDEX: "{not"}, "model_index.json cannot be read (Expecting property name"),
        "not-object": (pipeline() | {INDEX: "[1]"}, "model_index.json holds '[1]', expected a JSON object"),
        "no-vae": ({k: v for k, v in pipeline().items() if "vae" not in k}, "has no vae/config.json"),
        "no-scheduler": (pipeline() | {"scheduler/scheduler_config.json": None}, "has no scheduler/scheduler_conf"),
        "no-tokenizer": (pipeline() | {"tokenizer/tokenizer_config.json": None}, "has no folder tokenizer"),
        "no-weights": (pipeline() | {transformer: None}, "has no weights in transformer; wanted is"),
        "pickle": (pipeline() | {vae: None, "vae/model.bin": lora}, "has only vae/model.bin in vae; wanted is"),
        "variant": (
            pipeline() | {vae: None, "vae/diffusion_pytorch_model.fp16.safetensors": lora},
            "has only vae/diffusion_pytorch_model.fp16.safetensors in vae",
        ),
        "pointer": (pipeline() | {vae: "version https://git-lfs"}, "has 23 bytes and is no weights: a git-lfs"),
        "shards": (
            pipeline() | {"text_encoder/model.safetensors.index.json": sharded},
            "lacks 1 files of weights, such as text_encoder/model-00001-of-00002.safetensors",
        ),
        "shift": (
            pipeline()
            | {"scheduler/scheduler_config.json": flow | {"use_dynamic_shifting": True, "time_shift_type": "linear"}},
            "scheduler config has time_shift_type 'linear'; known is exponential",
        ),
    }  # fmt: skip
    for name, (files, message) in cases.items():
        with pytest.raises(ValueError, match="^path: ") as error:
            examine(write(tmp_path / name, files))
        assert str(tmp_path / name) in str(error.value) and message in str(error.value), (name, str(error.value))


def test_a_path_that_is_no_folder_is_named(tmp_path):
    (tmp_path / "wan.safetensors").write_bytes(b"0")
    for path, message in (
        (str(tmp_path / "wan.safetensors"), "is a file, and single-file checkpoints are not read"),
        ("", "'' is no folder, and no hub id"),
        ("https://huggingface.co/a/b", "is no folder, and no hub id of the form owner/name"),
    ):
        with pytest.raises(ValueError, match=f"^path: .*{message}"):
            examine(path)


def test_sizes_and_prompt_lengths_that_the_model_cannot_have_are_named_with_the_nearest(tmp_path):
    folder = write(tmp_path / "wan", pipeline())
    for change, message in (
        ({"num_frames": 16}, r"^num_frames: 16 cannot be represented; it must be 4 k -3, nearest is 13 or 17$"),
        ({"height": 475}, r"^height: 475 cannot be represented; it must be a multiple of 16, nearest is 464 or 480$"),
        ({"width": 8}, r"^width: 8 cannot be represented; it must be a multiple of 16, nearest is 16$"),
        ({"width": 20000}, r"^width: 20000 .* a multiple of 16, at most 16384, nearest is 16384$"),
        ({"max_prompt_tokens": 600}, r"^max_prompt_tokens: 600, but the tokenizer of .* ends at 512$"),
        ({"revision": "main"}, r"^revision: 'main', but .* is a local folder: null$"),
    ):
        with pytest.raises(ValueError, match=message):
            examine(folder, **change)


def test_image_to_video_needs_a_first_frame_and_clip_512_tokens_of_text(tmp_path):
    config = TEXT_TO_VIDEO["transformer/config.json"] | {"in_channels": 36}
    image = {"_class_name": "WanImageToVideoPipeline"}
    plain = write(tmp_path / "a14b", pipeline(**image) | {"transformer/config.json": config})
    assert examine(plain).image == "needed"
    seen = write(tmp_path / "clip", pipeline(**image) | {"transformer/config.json": config | {"image_dim": 1280}})
    assert examine(seen).image == "needed"
    with pytest.raises(ValueError, match="^max_prompt_tokens: 256, but .* tells the image from the text by 512 text"):
        examine(seen, max_prompt_tokens=256)


def test_a_shift_by_resolution_is_that_of_the_clips_size(tmp_path):
    """21 latent frames of 30 x 52 patches; mu is linear in the tokens, from 0.5 at 256 to 1.15 at 4096."""
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    folder = write(tmp_path / "wan", pipeline() | {"scheduler/scheduler_config.json": flow})
    mu = 0.5 + 0.65 * (21 * 30 * 52 - 256) / 3840
    assert examine(folder).process.shift == pytest.approx(math.exp(mu))


def test_a_family_of_ones_own_says_what_it_cannot_make(tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab/strict.py").write_text(
        "from generators.families.wan import WanGenerator\n"
        "class Family(WanGenerator):\n"
        "    family, pipelines = 'strict', ('LTXPipeline',)\n"
        "    def _latent_shape(self):\n"
        "        raise ValueError(f'num_frames: {self.size.num_frames} of {self.checkpoint.path}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    folder = write(tmp_path / "ltx", pipeline(_class_name="LTXPipeline"))

    with pytest.raises(ValueError, match=f"^num_frames: 81 of {folder}"):
        examine_generator("my_lab.strict", str(folder), SIZE)


# Hub ids


class Hub(ThreadingHTTPServer):
    """Serves model repositories as huggingface.co does; `asked` holds the paths of all requests."""

    def __init__(self, repositories: dict[str, dict[str, bytes]], gated: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.gated, self.asked = repositories, gated, list[str]()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body, headers = self._answer(self.path.partition("?")[0].strip("/").split("/"))
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _answer(self, words: list[str]) -> tuple[int, bytes, dict[str, str]]:
        repositories = self.server.repositories
        if words[:2] == ["api", "models"]:
            name, revision = "/".join(words[2:4]), words[-1] if "revision" in words else None
            if name not in repositories:
                return 401, b"", {"X-Error-Code": "RepoNotFound"}
            if revision not in (None, "main"):
                return 404, b"", {"X-Error-Code": "RevisionNotFound"}
            siblings = [{"rfilename": file, "size": len(of)} for file, of in repositories[name].items()]
            return 200, json.dumps({"id": name, "sha": "f" * 40, "siblings": siblings}).encode(), {}
        name, file = "/".join(words[:2]), "/".join(words[4:])
        if file not in repositories.get(name, {}):  # the client also asks for other things
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        if name in self.server.gated:
            return 403, b"", {"X-Error-Code": "GatedRepo"}
        content = repositories[name][file]
        return 200, content, {"X-Repo-Commit": "f" * 40, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


LOOK = """
import sys
from generators.core.checkpoint import open_checkpoint
for path, _, revision in (word.partition("@") for word in sys.argv[1:]):
    try:
        found = open_checkpoint(path, revision or None)
        print(found.config("model_index.json")["_class_name"], found.size)
    except ValueError as error:
        print(type(error).__name__, error)
"""


def look(home: Path, endpoint: str, *ids: str, **environment: str) -> list[str]:
    """What is found of these hub ids, a line each, in a process of its own with an empty cache under `home`."""
    given = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", LOOK, *ids]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | given | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def as_bytes(files: dict[str, object]) -> dict[str, bytes]:
    return {name: one if isinstance(one, bytes) else json.dumps(one).encode() for name, one in files.items()}


def test_of_a_hub_id_the_small_files_are_downloaded_and_no_weights(tmp_path):
    served = {
        "wan/t2v": as_bytes(pipeline()),
        "wan/gated": as_bytes(pipeline()),
        "wan/authors": as_bytes({"config.json": {"_class_name": "WanModel"}, "model.safetensors": b"0"}),
    }
    with Hub(served, gated=("wan/gated",)) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{hub.server_port}"
        ids = ("wan/t2v", "wan/gated", "wan/authors", "wan/none", "wan/t2v@v9")
        t2v, gated, authors, absent, no_revision = look(tmp_path, url, *ids)
        hub.shutdown()

    assert t2v == f"WanPipeline {3 * 2048}"
    assert "path: wan/gated is gated on the Hub: accept its terms there, and set HF_TOKEN" in gated
    assert "path: wan/authors is a single WanModel" in authors
    assert "path: wan/none is no local folder, and on the Hub it is absent, or private (HF_TOKEN)" in absent
    assert "revision: wan/t2v on the Hub has no 'v9'" in no_revision
    assert not [path for path in hub.asked if path.endswith(".safetensors")]

    offline = look(tmp_path, url, "wan/t2v", "wan/other", HF_HUB_OFFLINE="1")
    assert offline[0] == "WanPipeline None"  # by the cache alone, which does not tell the sizes
    assert offline[1].startswith("NotReachedError path: wan/other is no local folder, and could not be looked up")


@pytest.mark.ci
def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        (found,) = look(tmp_path, f"http://127.0.0.1:{mute.getsockname()[1]}", "wan/t2v")
        took = time.monotonic() - began
    assert found.startswith("NotReachedError path: wan/t2v is no local folder, and could not be looked up as a hub id")
    assert took < 60  # the Hub gets 5
