"""Imaging quality: our part with a stand-in for pyiqa, and the real MUSIQ where pyiqa is installed."""

import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from feedback.core.kinds import make_source, read_block
from feedback.metrics.musiq import prepared

HAS_PYIQA = importlib.util.find_spec("pyiqa") is not None


class Bright(nn.Module):
    """100 times the mean brightness of a frame, times a weight."""

    def __init__(self, pretrained: bool) -> None:
        super().__init__()
        assert not pretrained  # pyiqa would download, and run what a pickle holds
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return 100 * self.scale * frames.mean((1, 2, 3))[:, None]


@pytest.fixture
def stand_in(monkeypatch):
    module = ModuleType("pyiqa.archs.musiq_arch")
    module.MUSIQ = Bright
    for name, one in (("pyiqa", ModuleType("pyiqa")), ("pyiqa.archs", ModuleType("archs")), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, one)


def metric(file) -> object:
    kind, options = read_block("m", {"kind": "imaging_quality", "file": str(file)})
    return kind.measure("m", options, "cpu")


def test_it_is_the_mean_over_the_frames(stand_in, tmp_path):
    """Frames of 51 and 153 of 255, a weight of 1.5: (0.2 + 0.6) / 2 * 1.5."""
    torch.save({"module.scale": torch.tensor([1.5])}, tmp_path / "musiq.pth")
    clip = np.stack([np.full((20, 30, 3), grey, np.uint8) for grey in (51, 153)])
    assert metric(tmp_path / "musiq.pth").score([clip], ["a ball"]) == [pytest.approx(0.6)]


def test_a_longer_side_above_512_is_scaled_and_others_are_left():
    assert prepared(np.zeros((1, 480, 832, 3), np.uint8)).shape == (1, 3, 295, 512)
    assert prepared(np.zeros((1, 1024, 512, 3), np.uint8)).shape == (1, 3, 512, 256)
    clip = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), np.uint8)
    assert (prepared(clip).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy().tolist() == clip.tolist()


def test_another_file_is_refused(stand_in, tmp_path):
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="feedback.sources.m.file: .*other.pth does not hold MUSIQ's weights"):
        metric(tmp_path / "other.pth")


@pytest.mark.skipif(HAS_PYIQA, reason="pyiqa is installed")
def test_without_pyiqa_the_error_says_how_to_install_it(tmp_path):
    torch.save({}, tmp_path / "musiq.pth")
    with pytest.raises(ValueError, match="needs pyiqa .*: pip install --no-deps pyiqa"):
        make_source("m", {"kind": "imaging_quality", "file": str(tmp_path / "musiq.pth")}, "cpu")


@pytest.mark.skipif(not HAS_PYIQA, reason="pyiqa is not installed: pip install --no-deps pyiqa==0.1.16")
def test_the_real_musiq_gives_the_mean_of_its_own_frames(tmp_path):
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.manual_seed(0)
    model = MUSIQ(pretrained=False).eval()
    torch.save(model.state_dict(), tmp_path / "musiq.pth")
    clip = np.random.default_rng(0).integers(0, 256, (3, 96, 64, 3), np.uint8)
    frames = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        wanted = [model(frame[None]).item() for frame in frames]
    assert metric(tmp_path / "musiq.pth").score([clip], ["a ball"]) == [pytest.approx(sum(wanted) / 300, rel=1e-4)]
