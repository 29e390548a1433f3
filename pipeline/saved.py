"""Whether DVC has saved what a stage published, known by its manifest: in dvc.lock, or at least in DVC's cache."""

import configparser
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import yaml

from data.manifest import MANIFEST

LOCK = "dvc.lock"
OBJECTS = "files/md5"  # in DVC's cache


def manifest_hash(out: Path) -> str:
    """DVC's hash of the manifest in a published folder."""
    return hashlib.md5((out / MANIFEST).read_bytes()).hexdigest()


def in_lock(out: str, manifest: str, root: Path = Path()) -> bool:
    """Whether dvc.lock lists the folder `out` with that manifest in it, of a run whose results the cache has.

    A dvc.lock that came by git lists results that are not here.
    """
    path = root / LOCK
    if not path.is_file():
        return False
    document = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for stage in (document.get("stages") or {}).values():
        for one in stage.get("outs", []):
            if one["path"] == out:
                listing = _cache(root) / one["md5"][:2] / one["md5"][2:]
                return listing.is_file() and _lists(listing, manifest)
    return False


def in_cache(manifest: str, root: Path = Path()) -> bool:
    """Whether DVC's cache has a whole folder with that manifest: the list of a folder's files is written last."""
    return any(_lists(listing, manifest) for listing in _cache(root).glob("??/*.dir"))


def _lists(listing: Path, manifest: str) -> bool:
    return manifest in listing.read_text(encoding="utf-8")


def _cache(root: Path) -> Path:
    """The folder of DVC's cache: as DVC's configs say, or else the default."""
    for path in _configs(root):
        config = configparser.ConfigParser(strict=False, interpolation=None)
        config.read(path, encoding="utf-8")
        if config.has_option("cache", "dir"):
            return path.parent / config.get("cache", "dir") / OBJECTS
    return root / ".dvc/cache" / OBJECTS


def _configs(root: Path) -> Iterator[Path]:
    """DVC's configs, the one that wins in front: of the clone, the repository, the user and the machine."""
    yield root / ".dvc/config.local"
    yield root / ".dvc/config"
    yield Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR") or platformdirs.user_config_dir("dvc", "iterative"), "config")
    yield Path(os.environ.get("DVC_SYSTEM_CONFIG_DIR") or platformdirs.site_config_dir("dvc", "iterative"), "config")
