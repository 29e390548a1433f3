"""FVD, FID and IS: networks of random weights in place of the published ones, which no test downloads."""

import importlib.util
import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from click.testing import CliRunner
from torch.utils.data import Dataset

import evaluation.distribution as distribution
from commands.distribution import main
from data.manifest import StoreError
from data.video import read_video, write_video
from evaluation.distribution import (
    MINIMUM,
    batches,
    find_clips,
    find_weights,
    fingerprint,
    frechet_distance,
    inception_score,
    load_i3d,
    load_inception,
    measure,
    shortfalls,
)
from tabletop.captions import all_claims
from tabletop.render import random_clip
from tests.support.training import write_clip_set

CPU = torch.device("cpu")

with_the_extra = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason='needs pip install ".[distribution]"'
)


class TinyI3D(torch.nn.Module):
    """Called as the I3D of FVD is; six features a clip, of which one is its brightness."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(3, 5, (3, 8, 8), (2, 8, 8))

    def forward(self, x, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert return_features
        if rescale:
            x = x / 127.5 - 1
        if resize:
            x = torch.nn.functional.interpolate(x, size=[x.shape[2], 16, 16], mode="trilinear")
        return torch.cat([self.conv(x).relu().mean(dim=[2, 3, 4]), x.mean(dim=[1, 2, 3, 4])[:, None]], dim=1)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d_torchscript.pt"
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        torch.jit.script(TinyI3D()).save(path)
    return path


@pytest.fixture(scope="module")
def inception(tmp_path_factory) -> Path:
    """Random weights of torch-fidelity's own InceptionV3."""
    from torch_fidelity import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments, **options):
            for module in self.modules():
                if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                    torch.nn.init.kaiming_normal_(module.weight)

    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({}, path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Unloaded("random", ["2048"], feature_extractor_weights_path=path)
    torch.save(network.state_dict(), path)
    return path


def write_clips(folder: Path, count: int, seed: int = 0, frames: int = 9, size: int = 32) -> list[Path]:
    """Rendered clips of the tabletop, cut to so many frames and to their top left corner."""
    rng, claims = np.random.default_rng(seed), all_claims()
    for i in range(count):
        clip, _ = random_clip(claims[rng.integers(len(claims))], rng, botched=0.0)
        write_video(folder / f"{i:03d}.mp4", clip[:frames, :size, :size], fps=8)
    return sorted(folder.glob("*.mp4"))


def measured(clips, reference, metrics, allow_few=True, frames=None, batch_size=4, **weights):
    return measure(clips, reference, metrics, weights, frames, batch_size, CPU, allow_few)


# Figures


# Four points at distance s_x, s_y from their mean: variances 2 s² / 3.
CROSS = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


@with_the_extra
def test_the_frechet_distance_of_two_gaussians_worked_by_hand():
    # variances 8/3 and 2/3; doubled points 32/3 and 8/3; the means are 3 and 4 apart:
    # 9 + 16 + (√(32/3) - √(8/3))² + (√(8/3) - √(2/3))² = 25 + 8/3 + 2/3
    assert frechet_distance(CROSS, 2 * CROSS + torch.tensor([3.0, 4.0])) == pytest.approx(25 + 10 / 3, rel=1e-6)


@with_the_extra
def test_the_frechet_distance_is_the_formula_where_covariances_do_not_commute():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4))
    s, t = np.cov(one.T), np.cov(other.T)
    gap = one.mean(0) - other.mean(0)
    by_formula = gap @ gap + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)

    assert frechet_distance(torch.tensor(one), torch.tensor(other)) == pytest.approx(by_formula, rel=1e-6)
    assert frechet_distance(torch.tensor(other), torch.tensor(one)) == pytest.approx(by_formula, rel=1e-6)
    assert frechet_distance(torch.tensor(one), torch.tensor(one)) == pytest.approx(0, abs=1e-6)


@with_the_extra
def test_the_inception_score_of_known_probabilities():
    # Of 20 images in 10 splits any two share one. Each has 3/4 on a class of its own and 1/4 on one that all have:
    # KL(p || mean of the two) = 3/4 log(3/4 / 3/8) + 1/4 log 1 = 3/4 log 2, whoever the other is.
    probabilities = torch.cat([torch.eye(20) * 0.75, torch.full((20, 1), 0.25)], dim=1)
    mean, std = inception_score((probabilities + 1e-12).log())

    assert mean == pytest.approx(2**0.75, rel=1e-4)
    assert std == pytest.approx(0, abs=1e-6)


@with_the_extra
def test_images_that_look_alike_score_one():
    mean, std = inception_score(torch.tensor([[1.0, 2.0, 3.0]]).repeat(30, 1))

    assert mean == pytest.approx(1)
    assert std == pytest.approx(0, abs=1e-6)


# Networks


class Frames(Dataset):
    """All frames of clips as torch-fidelity reads images."""

    def __init__(self, clips):
        self.images = torch.from_numpy(np.concatenate([read_video(clip) for clip in clips])).permute(0, 3, 1, 2)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


@pytest.mark.ci
@with_the_extra
def test_fid_and_is_are_torch_fidelitys_own_of_the_frames(tmp_path, inception, monkeypatch):
    """FID on a layer of 64 features, because the root of a 2,048 x 2,048 matrix takes seconds."""
    from torch_fidelity import FeatureExtractorInceptionV3, calculate_metrics

    layer_of = FeatureExtractorInceptionV3.get_default_feature_layer_for_metric
    small = staticmethod(lambda metric: "64" if metric == "fid" else layer_of(metric))
    monkeypatch.setattr(FeatureExtractorInceptionV3, "get_default_feature_layer_for_metric", small)
    clips, reference = write_clips(tmp_path / "a", 5, frames=2), write_clips(tmp_path / "b", 2, seed=1, frames=2)
    found = measured(clips, reference, ["fid", "is"], inception=inception)["metrics"]
    theirs = calculate_metrics(
        input1=Frames(clips), input2=Frames(reference), fid=True, isc=True, cuda=False, cache=False, verbose=False,
        save_cpu_ram=True, feature_extractor_weights_path=str(inception),
    )  # fmt: skip

    assert found["fid"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert found["fid"]["value"] > 0
    assert found["is"]["value"] == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert found["is"]["std"] == pytest.approx(theirs["inception_score_std"], abs=1e-5)


@pytest.mark.ci
@with_the_extra
def test_a_clip_has_one_row_for_fvd_and_one_a_frame_for_fid_and_is(tmp_path, inception, i3d):
    clips = next(batches(write_clips(tmp_path, 2, frames=3), 3, cut=False, size=8))
    images = load_inception(inception, ["fid", "is"], CPU)(clips)
    videos = load_i3d(i3d, ["fvd"], CPU)(clips)

    assert images["fid"].shape == (6, 2048)
    assert images["is"].shape == (6, 1008)
    assert videos["fvd"].shape == (2, 6)


def test_i3d_is_given_all_of_the_clip_from_0_to_255(i3d):
    clips = torch.stack([torch.zeros(9, 8, 8, 3), torch.full((9, 8, 8, 3), 255)]).to(torch.uint8)

    assert load_i3d(i3d, ["fvd"], CPU)(clips)["fvd"][:, -1].tolist() == [-1, 1]  # the brightness, rescaled


@with_the_extra
def test_a_file_that_is_no_network_is_named(tmp_path):
    for load in (load_inception, load_i3d):
        path = tmp_path / "weights.pth"
        path.write_text("not found")

        with pytest.raises(ValueError, match=r"weights\.pth: not "):
            load(path, ["fid"], CPU)


@with_the_extra
def test_weights_of_another_network_are_refused(tmp_path):
    for holds in ({"fc.weight": torch.zeros(2)}, torch.zeros(2)):
        path = tmp_path / "weights.pth"
        torch.save(holds, path)

        with pytest.raises(ValueError, match="not weights of torch-fidelity's InceptionV3"):
            load_inception(path, ["fid"], CPU)


@with_the_extra
def test_weights_that_would_run_code_are_not_run(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"run": print}, path)

    with pytest.raises(ValueError, match="not weights of"):
        load_inception(path, ["fid"], CPU)


def test_a_torchscript_of_another_network_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "linear.pt")

    with pytest.raises(ValueError, match=r"linear\.pt: its forward takes no rescale, resize, return_features"):
        load_i3d(tmp_path / "linear.pt", ["fvd"], CPU)


# Weights


def test_only_the_weights_that_the_metrics_need_are_wanted(i3d):
    assert find_weights({"i3d": str(i3d)}, ["fvd"]) == {"i3d": i3d}


def test_missing_weights_are_named_with_where_they_are_to_be_had(i3d):
    with pytest.raises(ValueError, match=r"missing for fid and is: weights of inception \(https://github.com/toshas"):
        find_weights({"i3d": str(i3d)}, ["fid", "is", "fvd"])
    with pytest.raises(ValueError, match=r"for fvd: weights of i3d \(hf://"):
        find_weights({}, ["fvd"])
    with pytest.raises(ValueError, match=r"weights of i3d: nowhere\.pt is no file; to be had: hf://"):
        find_weights({"i3d": "nowhere.pt"}, ["fvd"])


def test_unknown_metrics_and_networks_are_named():
    with pytest.raises(ValueError, match="no metric kid; known: fid, is, fvd"):
        find_weights({}, ["fid", "kid"])
    with pytest.raises(ValueError, match="no network vgg; known: inception, i3d"):
        find_weights({"vgg": "x"}, ["fid"])


def test_weights_on_the_hub_come_from_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit, repo = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--owner--i3d"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(commit)
    cached = repo / "snapshots" / commit / "folder/i3d.pt"
    cached.parent.mkdir(parents=True)
    cached.write_text("weights")

    assert find_weights({"i3d": "hf://owner/i3d/folder/i3d.pt"}, ["fvd"]) == {"i3d": cached}
    assert find_weights({"i3d": f"hf://owner/i3d@{commit}/folder/i3d.pt"}, ["fvd"]) == {"i3d": cached}
    with pytest.raises(ValueError, match=r"weights of i3d: hf://owner/i3d/other\.pt is not to be had"):
        find_weights({"i3d": "hf://owner/i3d/other.pt"}, ["fvd"])


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch, i3d):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    clips = write_clips(tmp_path, 2)

    with pytest.raises(ValueError, match=r'pip install "\.\[distribution\]"'):
        measured(clips, clips, ["fvd"], i3d=i3d)


# Sizes


def test_each_metric_says_what_it_lacks_one_below_its_minimum():
    for metric, enough, sentence in (
        ("fid", 2049, "2,048 clips in the set, 2,049 wanted: the covariance"),
        ("fvd", 2048, "2,047 clips in the set, 2,048 wanted: figures are commonly"),
        ("is", 12_500, "49,996 frames in the set, 50,000 wanted: Salimans"),  # 4 frames a clip
    ):
        reference = 100_000

        assert shortfalls([metric], {"set": enough, "reference": reference}, 4)[metric] is None, metric
        assert shortfalls([metric], {"set": enough - 1, "reference": reference}, 4)[metric].startswith(sentence), metric


def test_a_small_reference_is_as_bad_as_a_small_set_but_not_for_is():
    lacks = shortfalls(["fid", "is", "fvd"], {"set": 100_000, "reference": 10}, 9)

    assert lacks["fid"].startswith("10 clips in the reference")
    assert lacks["fvd"].startswith("10 clips in the reference")
    assert lacks["is"] is None


def test_frames_of_a_clip_do_not_count_as_clips():
    assert shortfalls(["fid"], {"set": 2048, "reference": 2049}, 81)["fid"]


@with_the_extra
def test_too_few_clips_are_refused_before_any_network_is_loaded(tmp_path):
    clips = write_clips(tmp_path, 3)

    with pytest.raises(ValueError, match=r"fid: 3 clips .* 2,049 wanted.*; fvd: 3 clips"):
        measured(clips, clips, ["fid", "fvd"], allow_few=False, inception=None, i3d=None)


@with_the_extra
def test_figures_of_too_few_are_marked_and_of_enough_are_not(tmp_path, monkeypatch, i3d):
    clips, reference = write_clips(tmp_path / "a", 3), write_clips(tmp_path / "b", 4, seed=1)
    few = measured(clips, reference, ["fvd"], i3d=i3d)
    monkeypatch.setitem(distribution.MINIMUM, "fvd", MINIMUM["fvd"]._replace(wanted=3))
    enough = measured(clips, reference, ["fvd"], allow_few=False, i3d=i3d)

    assert few["metrics"]["fvd"]["few"].startswith("3 clips in the set, 2,048 wanted")
    assert enough["metrics"]["fvd"] == few["metrics"]["fvd"] | {"few": None}


def test_some_are_too_few_for_any_figure():
    for metric, clips, frames in (("fid", 1, 9), ("fvd", 1, 9), ("is", 3, 3)):
        with pytest.raises(ValueError, match=f"{metric}: .* in the set; no figure below"):
            shortfalls([metric], {"set": clips, "reference": 5}, frames)


# Clips


@with_the_extra
def test_fvd_is_nothing_between_equal_clips_and_grows_with_what_is_done_to_them(tmp_path, i3d):
    clips = write_clips(tmp_path / "clips", 12)
    for path in clips:
        frames = read_video(path)
        write_video(tmp_path / "dimmed" / path.name, (frames * 0.8).astype(np.uint8), 8)
        write_video(tmp_path / "dark" / path.name, (frames * 0.3).astype(np.uint8), 8)
    itself, dimmed, dark = (
        measured(find_clips(tmp_path / name), clips, ["fvd"], i3d=i3d)["metrics"]["fvd"]["value"]
        for name in ("clips", "dimmed", "dark")
    )

    assert itself == pytest.approx(0, abs=1e-6)
    assert 0.01 < dimmed < dark


@with_the_extra
def test_the_sizes_and_what_made_the_features_stand_beside_the_figure(tmp_path, i3d):
    clips, reference = write_clips(tmp_path / "a", 3), write_clips(tmp_path / "b", 4, seed=1)
    found = measured(clips, reference, ["fvd"], i3d=i3d)

    assert found["set"] == {"clips": 3, "frames": 27, "sha256": fingerprint(clips)}
    assert found["reference"] == {"clips": 4, "frames": 36, "sha256": fingerprint(reference)}
    assert found["frames_per_clip"] == 9
    assert found["networks"]["i3d"]["sha256"] == distribution.sha256_of(i3d)
    assert found["library"].startswith("torch-fidelity 0.")
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@with_the_extra
def test_the_batch_size_changes_nothing(tmp_path, i3d):
    clips, reference = write_clips(tmp_path / "a", 5), write_clips(tmp_path / "b", 4, seed=1)
    one, all_at_once = (measured(clips, reference, ["fvd"], batch_size=size, i3d=i3d) for size in (1, 99))

    assert one["metrics"]["fvd"]["value"] == pytest.approx(all_at_once["metrics"]["fvd"]["value"], rel=1e-4)


def test_a_clip_is_decoded_once_for_all_metrics_and_the_reference_skips_the_network_of_is_alone(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    seen, decoded = {"inception": 0, "i3d": 0}, []
    monkeypatch.setattr(distribution, "read_video", lambda path: decoded.append(path) or read_video(path))

    def counting(name, metric):
        def features(clips):
            seen[name] += len(clips)
            return {metric: clips.flatten(1).float()[:, :40]}

        return lambda weights, metrics, device: features

    for name, metric in (("inception", "is"), ("i3d", "fvd")):
        network = distribution.NETWORKS[name]
        replaced = distribution.Network(network.metrics, "pixels", "", counting(name, metric))
        monkeypatch.setitem(distribution.NETWORKS, name, replaced)
    clips = write_clips(tmp_path, 10)
    measured(clips, clips[:7], ["is", "fvd"], inception=clips[0], i3d=clips[0])

    assert seen == {"inception": 10, "i3d": 17}
    assert decoded == [clips[0], *clips, *clips[:7]]  # the first one also for its length


def test_clips_of_other_sizes_make_batches_of_their_own(tmp_path):
    write_clips(tmp_path, 4, size=32)
    write_video(tmp_path / "001.mp4", np.zeros((9, 16, 24, 3), np.uint8), 8)
    shapes = [tuple(clips.shape) for clips in batches(find_clips(tmp_path), 9, cut=False, size=2)]

    assert shapes == [(1, 9, 32, 32, 3), (1, 9, 16, 24, 3), (2, 9, 32, 32, 3)]


@with_the_extra
def test_clips_of_other_lengths_are_refused_and_named_unless_all_are_cut(tmp_path, i3d):
    clips, longer = write_clips(tmp_path / "a", 4), tmp_path / "longer"
    for path in clips:
        write_video(longer / path.name, np.concatenate([read_video(path), np.zeros((3, 32, 32, 3), np.uint8)]), 8)

    with pytest.raises(ValueError, match=r"longer/000\.mp4: 12 frames, but 9 are wanted"):
        measured(clips, find_clips(longer), ["fvd"], i3d=i3d)
    with pytest.raises(ValueError, match=r"a/000\.mp4: 9 frames, but 12 are wanted"):
        measured(clips, find_clips(longer), ["fvd"], frames=12, i3d=i3d)
    cut = measured(clips, find_clips(longer), ["fvd"], frames=9, i3d=i3d)
    assert cut["metrics"]["fvd"]["value"] == pytest.approx(0, abs=0.001)  # lossless but for rounding colours again
    assert cut["reference"]["frames"] == 36


@with_the_extra
def test_clips_too_short_for_i3d_are_refused(tmp_path, i3d):
    clips = write_clips(tmp_path, 2, frames=8)

    with pytest.raises(ValueError, match="fvd: clips of 8 frames; I3D needs 9 or more"):
        measured(clips, clips, ["fvd"], i3d=i3d)


@with_the_extra
def test_fvd_of_clips_at_two_rates_is_refused(tmp_path, i3d):
    clips, others = write_clips(tmp_path / "a", 2), write_clips(tmp_path / "b", 2)
    write_video(others[1], read_video(others[1]), 16)

    with pytest.raises(ValueError, match=f"fvd: {clips[0]} has 8 frames a second and {others[1]} has 16, .* fps=8 OUT"):
        measured(clips, others, ["fvd"], i3d=i3d)


@pytest.mark.ci
@with_the_extra
def test_a_distance_needs_a_reference_and_the_inception_score_none(tmp_path, inception):
    clips = write_clips(tmp_path, 2, frames=5)

    with pytest.raises(ValueError, match="fvd: a reference is needed"):
        measured(clips, None, ["is", "fvd"])
    found = measured(clips, None, ["is"], inception=inception)
    assert found["reference"] is None
    assert 1 <= found["metrics"]["is"]["value"] <= math.exp(math.log(10))


def test_clips_are_found_in_a_clip_set_and_in_a_folder(tmp_path):
    clip_set = write_clip_set(tmp_path / "samples")
    write_clips(tmp_path / "folder", 2)

    assert find_clips(clip_set.folder) == [clip_set.video(sample) for sample in clip_set.samples]
    assert [path.name for path in find_clips(tmp_path / "folder")] == ["000.mp4", "001.mp4"]


def test_a_folder_without_clips_and_a_half_written_set_are_named(tmp_path):
    clip_set = write_clip_set(tmp_path / "samples")

    with pytest.raises(ValueError, match="neither a finished clip set nor a folder with"):
        find_clips(tmp_path)
    clip_set.video(clip_set.samples[0]).unlink()
    with pytest.raises(StoreError, match=clip_set.samples[0].file_name):
        find_clips(clip_set.folder)


def test_the_fingerprint_changes_with_any_clip_and_with_their_order(tmp_path):
    clips = write_clips(tmp_path, 2)
    before = fingerprint(clips)

    assert fingerprint(clips[::-1]) != before
    write_video(clips[0], np.zeros((9, 16, 16, 3), np.uint8), 8)
    assert fingerprint(clips) != before


# The command


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.mark.ci
@with_the_extra
def test_the_command_writes_its_figures_and_refuses_too_few_unless_they_are_allowed(tmp_path, inception, i3d):
    write_clips(tmp_path / "clips", 2)
    write_clips(tmp_path / "reference", 2, seed=1)
    arguments = [
        "--set", tmp_path / "clips", "--reference", tmp_path / "reference", "--device", "cpu",
        "--weights", f"inception={inception}", "--weights", f"i3d={i3d}", "--out", tmp_path / "metrics/found.json",
    ]  # fmt: skip
    code, output = run(*arguments)
    assert code == 1
    assert "fid: 2 clips in the set, 2,049 wanted" in output
    assert not (tmp_path / "metrics").exists()

    code, output = run(*arguments, "--allow-few", "--metric", "is", "--metric", "fvd")
    assert code == 0, output
    found = json.loads((tmp_path / "metrics/found.json").read_text())
    assert found["metrics"].keys() == {"is", "fvd"}
    assert all(figure["value"] >= 0 and figure["few"] for figure in found["metrics"].values())
    assert str(tmp_path) not in json.dumps(found)


def test_the_command_says_how_weights_are_named(tmp_path):
    write_clips(tmp_path, 1)
    code, output = run("--set", tmp_path, "--weights", "weights.pth", "--out", tmp_path / "found.json")

    assert code == 1
    assert "--weights weights.pth: expected NETWORK=FILE" in output
