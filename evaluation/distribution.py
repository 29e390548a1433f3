"""FVD, FID and IS of a set of clips: how near its distribution is to that of reference clips, and how varied it is.

Table 3 of Furuta et al. measures by them the cost of fine-tuning. InceptionV3, the Fréchet distance and the Inception
score are those of torch-fidelity, the extra `distribution`. It has no FVD: ours is its Fréchet distance between logits
of the I3D that published figures use (Unterthiner et al., arXiv:1812.01717), read from TorchScript.
"""

import hashlib
import logging
import pickle
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.manifest import MANIFEST, sha256_of
from data.store import ClipSet
from data.video import read_fps, read_video

logger = logging.getLogger(__name__)

FID, IS, FVD = METRICS = ("fid", "is", "fvd")
IS_SPLITS = 10  # Salimans et al.; the score is the mean over them
IMAGES = 64  # frames a forward of InceptionV3
SAME_RATE = 1.01  # largest quotient of two rates that count as one: 23.976 and 24 frames a second
I3D_FRAMES = 9  # its strides leave 2 of them, the depth of its last pooling

# (B, F, H, W, 3) uint8 clips -> metric -> (N, D) features on the CPU, N being B or B F
Extractor = Callable[[Tensor], dict[str, Tensor]]


class Minimum(NamedTuple):
    """The size below which a figure depends more on the sample than on the distribution."""

    wanted: int
    unit: str  # clips | frames
    reason: str
    floor: int  # below it there is no figure at all


MINIMUM = {
    FID: Minimum(
        2049,
        "clips",
        "the covariance of 2,048 features is singular for fewer samples, and frames of one clip are near copies",
        2,
    ),
    IS: Minimum(50_000, "frames", "Salimans et al. (arXiv:1606.03498) ask for 50,000 images in 10 splits", IS_SPLITS),
    FVD: Minimum(2048, "clips", "figures are commonly published for 2,048 or more, and fewer give a higher FVD", 2),
}


# Clips


def find_clips(folder: Path) -> list[Path]:
    """The videos of a clip set, or the mp4s of any other folder by name. Raises StoreError or ValueError for none."""
    if (folder / MANIFEST).is_file():
        clip_set = ClipSet.open(folder)
        return [clip_set.video(sample) for sample in clip_set.samples]
    found = sorted(folder.glob("*.mp4"))
    if not found:
        raise ValueError(f"{folder}: neither a finished clip set nor a folder with *.mp4 in it")
    return found


def fingerprint(paths: Sequence[Path]) -> str:
    """sha256 over the names and bytes of the clips, in order: equal for figures that may be compared."""
    listed = "\n".join(f"{path.name} {sha256_of(path)}" for path in paths)
    return hashlib.sha256(listed.encode()).hexdigest()


def batches(paths: Sequence[Path], num_frames: int, cut: bool, size: int) -> Iterator[Tensor]:
    """(B, num_frames, H, W, 3) uint8 clips: up to `size` neighbours of one height and width, each file read once.

    cut: take the first num_frames of a longer clip; otherwise, and for a shorter one, ValueError naming the file.
    """
    waiting: list[np.ndarray] = []
    for path in paths:
        frames = read_video(path)
        if len(frames) < num_frames or (len(frames) > num_frames and not cut):
            raise ValueError(
                f"{path}: {len(frames)} frames, but {num_frames} are wanted of every clip of both sides; "
                "a number of frames that all have, taken from the beginning, makes them comparable"
            )
        if waiting and (len(waiting) == size or waiting[0].shape[1:] != frames.shape[1:]):
            yield torch.from_numpy(np.stack(waiting))
            waiting = []
        waiting.append(frames[:num_frames])
    if waiting:
        yield torch.from_numpy(np.stack(waiting))


# Networks


@dataclass(frozen=True)
class Network:
    """A network that features come from."""

    metrics: tuple[str, ...]
    features: str
    source: str  # of its weights
    load: Callable[[Path, Sequence[str], torch.device], Extractor]


def load_inception(weights: Path, metrics: Sequence[str], device: torch.device) -> Extractor:
    """Features of every frame, (B F, 2048) for fid and (B F, 1008) for is, from torch-fidelity's InceptionV3.

    It resizes frames to 299 x 299 as TensorFlow 1 did, which the published weights expect. Raises ValueError for a file
    that does not hold its weights.
    """
    network_class = _library().FeatureExtractorInceptionV3
    name_there = {FID: "fid", IS: "isc"}
    layers = {metric: network_class.get_default_feature_layer_for_metric(name_there[metric]) for metric in metrics}
    try:
        torch.load(weights, map_location="cpu", weights_only=True)  # the library itself would run a pickle's code
        network = network_class("inception-v3-compat", list(layers.values()), feature_extractor_weights_path=weights)
    except (RuntimeError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{weights}: not weights of torch-fidelity's InceptionV3 ({_first_line(error)})") from error
    network.to(device)

    def features(clips: Tensor) -> dict[str, Tensor]:
        found = defaultdict(list)
        for images in clips.flatten(0, 1).permute(0, 3, 1, 2).split(IMAGES):
            by_layer = network.convert_features_tuple_to_dict(network(images.to(device)))
            for metric, layer in layers.items():
                found[metric].append(by_layer[layer].cpu())
        return {metric: torch.cat(parts) for metric, parts in found.items()}

    return features


def load_i3d(weights: Path, metrics: Sequence[str], device: torch.device) -> Extractor:
    """Logits of every clip, (B, 400) for fvd, from a TorchScript I3D, which itself scales and resizes to 224 x 224.

    Raises ValueError for a file that is no TorchScript, or one whose forward lacks these arguments.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # torch prefers torch.export, but I3D is published as TorchScript
            network = torch.jit.load(weights, map_location=device).eval()
    except RuntimeError as error:
        raise ValueError(f"{weights}: not a TorchScript file ({_first_line(error)})") from error
    options = {"rescale": True, "resize": True, "return_features": True}
    unknown = options.keys() - {argument.name for argument in network.forward.schema.arguments}
    if unknown:
        raise ValueError(f"{weights}: its forward takes no {', '.join(sorted(unknown))}, as the I3D of FVD does")

    def features(clips: Tensor) -> dict[str, Tensor]:
        videos = clips.permute(0, 4, 1, 2, 3).to(device, torch.float32)  # 0 to 255; rescale makes -1 to 1 of it
        logits = network(videos, **options).cpu()
        return dict.fromkeys(metrics, logits)

    return features


NETWORKS = {
    "inception": Network(
        (FID, IS),
        "torch-fidelity's inception-v3-compat: pool of 2,048 (fid), logits_unbiased (is)",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        load_inception,
    ),
    "i3d": Network(
        (FVD,),
        "I3D of Kinetics-400, TorchScript: logits of 400",
        "hf://flateon/FVD-I3D-torchscript/i3d_torchscript.pt, or the i3d_torchscript.pt of StyleGAN-V",
        load_i3d,
    ),
}


def networks_of(metrics: Sequence[str]) -> dict[str, list[str]]:
    """Network -> those of the metrics that it serves, networks without any left out."""
    served = {name: [metric for metric in network.metrics if metric in metrics] for name, network in NETWORKS.items()}
    return {name: found for name, found in served.items() if found}


def find_weights(given: Mapping[str, str], metrics: Sequence[str]) -> dict[str, Path]:
    """Network -> the file with its weights, for all networks that the metrics need.

    given: network -> a path, or hf://<owner>/<name>[@<revision>]/<file>, which the hub's client downloads or finds in
        its cache.
    Raises ValueError naming what is missing and where it is to be had, and for a network or metric that is unknown.
    """
    for kind, names, known in (("metric", metrics, METRICS), ("network", given, tuple(NETWORKS))):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"no {kind} {', '.join(unknown)}; known: {', '.join(known)}")
    needed = networks_of(metrics)
    missing = [
        f"{' and '.join(served)}: weights of {name} ({NETWORKS[name].source})"
        for name, served in needed.items()
        if name not in given
    ]
    if missing:
        raise ValueError(f"missing for {'; for '.join(missing)}. Name a file of each, or leave out the metric")
    return {name: _weights_file(name, given[name]) for name in needed}


def _weights_file(network: str, where: str) -> Path:
    on_hub = re.fullmatch(r"hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)", where)
    if not on_hub:
        path = Path(where)
        if not path.is_file():
            raise ValueError(f"weights of {network}: {where} is no file; to be had: {NETWORKS[network].source}")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(on_hub["repo"], on_hub["file"], revision=on_hub["revision"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"weights of {network}: {where} is not to be had ({_first_line(error)})") from error


def _library() -> Any:
    try:
        import torch_fidelity
        import torch_fidelity.metric_fid
        import torch_fidelity.metric_isc
    except ImportError as error:
        raise ValueError(f'FVD, FID and IS need torch-fidelity: pip install ".[distribution]" ({error})') from error
    return torch_fidelity


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# Figures


def frechet_distance(one: Tensor, other: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features: |m - m'|² + tr(S + S' - 2 (S S')^½).

    one, other: (N, D) and (M, D), at least two samples and two features each; S has N - 1 in its denominator.
    """
    there = _library().metric_fid
    statistics = [there.fid_features_to_statistics(features) for features in (one, other)]
    return float(there.fid_statistics_to_metric(*statistics, verbose=False)[there.KEY_METRIC_FID])


def inception_score(logits: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over IS_SPLITS splits of exp E KL(p(y|x) || p(y)), from 1 to the number of classes.

    logits: (N, classes). The splits are shuffled with torch-fidelity's fixed seed. Frames of one clip fall into several
    of them, so the deviation is no error of the score.
    """
    there = _library().metric_isc
    found = there.isc_features_to_metric(logits, splits=IS_SPLITS)
    return found[there.KEY_METRIC_ISC_MEAN], found[there.KEY_METRIC_ISC_STD]


def shortfalls(metrics: Sequence[str], clips: Mapping[str, int], num_frames: int) -> dict[str, str | None]:
    """Metric -> a sentence saying what it lacks and why that matters, None when the clips are enough for it.

    clips: side -> number of its clips. Raises ValueError for so few that there is no figure.
    """
    lacks: dict[str, str | None] = {}
    for metric in metrics:
        minimum = MINIMUM[metric]
        sides = {side: count * (1 if minimum.unit == "clips" else num_frames) for side, count in clips.items()}
        if metric == IS:  # of the set alone
            sides.pop("reference", None)
        side, found = min(sides.items(), key=lambda one: one[1])
        if found < minimum.floor:
            raise ValueError(f"{metric}: {found} {minimum.unit} in the {side}; no figure below {minimum.floor}")
        enough = found >= minimum.wanted
        sentence = f"{found:,} {minimum.unit} in the {side}, {minimum.wanted:,} wanted: {minimum.reason}"
        lacks[metric] = None if enough else sentence
    return lacks


def check_rates(paths: Sequence[Path]) -> None:
    """Raises ValueError naming two clips whose frames per second differ: I3D sees motion a frame, not a second."""
    rates = {path: read_fps(path) for path in paths}
    slow, fast = min(paths, key=rates.__getitem__), max(paths, key=rates.__getitem__)
    if rates[fast] > SAME_RATE * rates[slow]:
        raise ValueError(
            f"fvd: {slow} has {rates[slow]:g} frames a second and {fast} has {rates[fast]:g}, so the figure would "
            f"measure the rates; bring all clips to one: ffmpeg -i IN -vf fps={rates[slow]:g} OUT"
        )


def measure(
    clips: Sequence[Path],
    reference: Sequence[Path] | None,
    metrics: Sequence[str],
    weights: Mapping[str, Path],
    frames: int | None,
    batch_size: int,
    device: torch.device,
    allow_few: bool,
) -> dict[str, Any]:
    """The figures of the clips, with all that they depend on; each clip is decoded once, the first also for its length.

    reference: not needed for is. weights: from `find_weights`. frames: the first so many of each clip; None takes all,
        and then every clip must have as many as the first. batch_size: clips a forward. allow_few: figures below a
        minimum are given and marked instead of refused.
    Every frame is an image of its own for fid and is; the paper has "summing image metric over frames", and no more.

        metrics.<metric>     value, few (null, or what the sample lacks); is also has std, over its splits
        set, reference       clips, frames, sha256 (`fingerprint`); reference is null when no metric needs it
        frames_per_clip, networks.<network> (features, sha256 of the weights), library

    Raises ValueError for clips that are too few or not comparable, and for the extra that is not installed.
    """
    library = _library()
    sides = {"set": clips}
    if set(metrics) - {IS}:
        if reference is None:
            raise ValueError(f"{', '.join(sorted(set(metrics) - {IS}))}: a reference is needed; only is goes without")
        sides["reference"] = reference
    num_frames = frames or len(read_video(clips[0]))
    if FVD in metrics and num_frames < I3D_FRAMES:
        raise ValueError(f"fvd: clips of {num_frames} frames; I3D needs {I3D_FRAMES} or more")
    if FVD in metrics:
        check_rates([path for paths in sides.values() for path in paths])
    lacks = shortfalls(metrics, {side: len(paths) for side, paths in sides.items()}, num_frames)
    refused = [f"{metric}: {sentence}" for metric, sentence in lacks.items() if sentence]
    if refused and not allow_few:
        raise ValueError("; ".join(refused))
    for sentence in refused:
        logger.warning("%s", sentence)

    networks = networks_of(metrics)
    extractors = {name: NETWORKS[name].load(weights[name], served, device) for name, served in networks.items()}
    compared = networks_of([metric for metric in metrics if metric != IS])
    features = {}
    for side, paths in sides.items():
        needed = [extractors[name] for name in (networks if side == "set" else compared)]
        features[side] = extract(paths, needed, num_frames, frames is not None, batch_size, side)
    sizes = {
        side: {"clips": len(paths), "frames": len(paths) * num_frames, "sha256": fingerprint(paths)}
        for side, paths in sides.items()
    }
    return {
        "metrics": {metric: _figure(metric, features) | {"few": lacks[metric]} for metric in metrics},
        "set": sizes["set"],
        "reference": sizes.get("reference"),
        "frames_per_clip": num_frames,
        "networks": {
            name: {"features": NETWORKS[name].features, "sha256": sha256_of(weights[name])} for name in networks
        },
        "library": f"torch-fidelity {library.__version__}",
    }


def extract(
    paths: Sequence[Path], extractors: Sequence[Extractor], num_frames: int, cut: bool, batch_size: int, side: str
) -> dict[str, Tensor]:
    """Metric -> (N, D) features of all clips, in their order; arguments as `batches` has them, side names the bar."""
    found = defaultdict(list)
    with tqdm(total=len(paths), unit="clip", desc=f"features of the {side}") as progress, torch.inference_mode():
        for clips in batches(paths, num_frames, cut, batch_size):
            for extractor in extractors:
                for metric, features in extractor(clips).items():
                    found[metric].append(features)
            progress.update(len(clips))
    return {metric: torch.cat(parts) for metric, parts in found.items()}


def _figure(metric: str, features: Mapping[str, Mapping[str, Tensor]]) -> dict[str, float]:
    if metric == IS:
        mean, std = inception_score(features["set"][IS])
        return {"value": mean, "std": std}
    return {"value": frechet_distance(features["set"][metric], features["reference"][metric])}
