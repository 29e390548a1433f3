"""The code of docs/doors.md, run as a user's own modules in the working folder."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.labels import read_verdicts
from data.prompts import Prompt
from data.records import Sample
from data.store import ClipSet, ClipSetWriter, encode_clips
from feedback.core.kinds import make_source, needs_device, read_block
from feedback.core.label import label_clip_set
from feedback.questions import Writing, write_questions
from generators.core.decoding import Decoding, open_lighter, psnr, squared_error
from generators.core.load import load_generator
from generators.core.size import VideoSize
from generators.decoders.lighter import DecoderPlace
from tabletop.captions import Claim, Thing
from tabletop.render import render
from tabletop.scenes import make_scene
from tests.support.conditions import blank_conditions

PAGE = Path(__file__).parents[1] / "docs/doors.md"


@pytest.fixture(autouse=True)
def my_lab(tmp_path, monkeypatch):
    """Every block of the page, written to the file that its first line names."""
    blocks = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = ["judges/tracker.py", "lowercase.py", "checklist.py", "colours.py"]
    assert [name for name, _ in blocks] == [f"my_lab/{name}" for name in names]
    for name, code in blocks:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def clip_set(folder: Path, clips: np.ndarray) -> ClipSet:
    """One clip for each of (N, F, H, W, 3)."""
    count, frames, height, width = clips.shape[:4]
    samples = [
        Sample(f"s{n}", f"p{n}", "a ball", "c", "train", "base", n, frames, 8.0, height, width, f"videos/s{n}.mp4")
        for n in range(count)
    ]
    writer = ClipSetWriter(folder)
    writer.add_batch(0, samples, encode_clips(samples, clips), torch.zeros(count, 1, 1, 1, 1))
    writer.finish(blank_conditions(f"p{n}" for n in range(count)), {})
    return ClipSet.open(folder)


def test_a_kind_of_ones_own_labels_a_clip_set(tmp_path):
    clips = np.zeros((2, 3, 32, 32, 3), np.uint8)
    clips[1, -1] = 90
    block = {"kind": "my_lab.judges.tracker", "least": 6}
    assert not needs_device("motion", block)
    out = tmp_path / "labels"
    counts = label_clip_set(clip_set(tmp_path / "set", clips), make_source("motion", block), tmp_path / "work", out, 2)
    assert (counts.accepted, counts.rejected, counts.unlabelled) == (1, 1, 0)
    still, moving = read_verdicts(out)
    assert still.reason == "a pixel changes by 0.0" and moving.answer is True


def test_what_is_wrong_with_a_kind_of_ones_own_is_named():
    wrong = [
        ({"least": -1.0}, ".least is -1.0, expected .*; known keys are least"),
        ({"most": 1.0}, ".most .* is unknown; known keys are least"),
        ({"kind": "my_lab.judges.gone"}, ".kind is 'my_lab.judges.gone', which cannot be imported"),
        ({"kind": "my_lab.judges.tracker.Tracker"}, ".kind is .* expected a feedback.core.kinds.Kind"),
    ]
    for changes, problem in wrong:
        with pytest.raises(ValueError, match=f"feedback.sources.motion{problem}"):
            read_block("motion", {"kind": "my_lab.judges.tracker"} | changes)


def test_a_family_of_ones_own_encodes_prompts_in_its_own_way():
    def encoded(family: str, prompt: str) -> torch.Tensor:
        path = "models/tabletop/generator"
        size = VideoSize(num_frames=9, height=32, width=32, fps=8.0)
        return load_generator(family, path, size, max_prompt_tokens=16, parts=("text",)).encode_text([prompt])["text"]

    caption = "a red ball falls"
    assert torch.equal(encoded("my_lab.lowercase", caption.upper()), encoded("wan", caption))


def test_a_writer_of_ones_own_writes_the_questions_of_each_prompt():
    prompts = [Prompt("p0", "a ball falls", "c", "train", None, None), Prompt("p1", "rain", "c", "train", None, None)]
    by = Writing("my_lab.checklist", None, ("alignment",), explanation=False, with_reference=False)
    written = write_questions(prompts, by, {}, "cpu")
    assert [ask.text for ask in written.asks["p0"]] == ["Is there a ball in the video?"]
    assert written.unwritten == {"p1": "'rain' names nothing to look for"}


def test_a_decoder_of_ones_own_is_fitted_to_the_vae_and_decodes_clips_near_it(tmp_path):
    """Its weights are the best linear map of the latents of a clip to the mean colour of their pixels."""
    size = VideoSize(num_frames=9, height=32, width=32, fps=8.0)
    generator = load_generator("wan", "models/tabletop/generator", size, max_prompt_tokens=16, parts=("vae",))
    scene = make_scene(Claim("push_right", (Thing("red", "cube"),)), np.random.default_rng(0))
    latents = generator.encode(torch.from_numpy(render(scene))[None])
    frames = generator.decode_float(latents)[0]
    colours = frames[0::2].unflatten(1, (8, 4)).unflatten(3, (8, 4)).mean((2, 4))  # of each latent pixel, (5, 8, 8, 3)
    given = latents[0].permute(1, 2, 3, 0).flatten(0, 2)
    given = torch.cat([given, torch.ones(len(given), 1)], 1)
    fitted = torch.linalg.lstsq(given, colours.flatten(0, 2)).solution
    errors = []
    for name, weights in (("fitted", fitted), ("grey", torch.cat([torch.zeros(12, 3), torch.full((1, 3), 0.5)]))):
        path = tmp_path / f"{name}.safetensors"
        save_file({"weight": weights[:-1].contiguous(), "bias": weights[-1].contiguous()}, path)
        place = DecoderPlace("my_lab.colours", str(path))
        decoding = Decoding("exact", 4, 2, None, 0, offload=False, straight_through=True, decoder=place)
        assert open_lighter(generator, decoding, "meta").channels == 12
        lighter = open_lighter(generator, decoding, "cpu")
        errors.append(squared_error(generator, latents, decoding, lighter))
    assert psnr(errors[0]) > psnr(errors[1]) + 6
    with pytest.raises(ValueError, match="mode is windowed, but decoder decodes in no windows"):
        open_lighter(generator, replace(decoding, mode="windowed"), "cpu")
