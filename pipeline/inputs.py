"""What params.yaml names outside runs/, by content: DVC cannot follow a path, a module or a list inside a parameter.

    generator.json         the family's code and the files of the model
    prompts.json           the prompt set
    images.json            the first frames that it names
    references.json        the reference clips that it names
    sources/<name>.json    the block with its members', without pace and price; the files that it names (rubric and its
                           questions, model), the commits of its hub ids, the code of its kind
    audits.json            of sources whose labels are trained on with label_noise: from_audit, what their audits found;
                           nothing of others, so that another audit trains nothing again
    rewards/<name>.json    the VLM and the rubric of an entry of reward.models
    online/<name>.json     the files that an entry of online.policies and its recipe name, the writer's model or code

Stage `base` writes them at every `dvc repro`; the other stages depend on those that they use. So a changed rubric runs
the stages that use it, in any folder, and no others.

What stage `reward` writes into runs/rewards/ is DVC's to follow: it is not hashed here.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from data.content.hashes import Hashes, named_path, remembered
from data.content.hub import commit_in_cache, commit_on_hub
from data.content.modules import module_files
from data.manifest import atomically
from data.prompts import load_prompts
from data.written import read_written
from feedback.core.kinds import KINDS, TRAINED, question_files, read_block, resolve, what_is_asked
from feedback.core.rubric import questions_file
from feedback.differentiable.asks import RUBRIC
from feedback.questions import WRITERS, is_source
from generators.core.families import FAMILIES
from pipeline.graph import reward_models, trained_policies
from pipeline.judges import REFERENCES
from pipeline.recipes import recipe_files, recipe_questions, recipe_values

# Code that dvc.yaml lists for the stages that use it; other code is found from its module.
LISTED = ("data", "cluster", "generators.core", "feedback", "rl")
NO_PATH = ("family", "kind", "references", "writer", "cache")  # keys whose values name code, or no input
AUDITS = Path("runs/audit")
LABELLED = Path("metrics/label")  # figures of each round's labels
DECODERS = "generators.decoders.decoder"  # of VAEs; the model's files say which of them a run uses
CACHE = Path(".state/hashes.json")  # the memory of content hashes
HELD = "No model is trained for this source.\n"  # DVC warns of an empty file
COMMIT = re.compile("[0-9a-f]{40}")  # a revision that is a commit stands for itself


def write_inputs(params: Mapping[str, Any], out: Path, needed: Collection[str] = ()) -> None:
    """Write a JSON file for each thing that params.yaml names into the folder `out`. Equal inputs give equal bytes.

    needed: the sources that the run uses. The hub is asked once for the commit of a hub id of theirs that was never
        downloaded; all other commits are those of the local cache.
    """
    sources = params["feedback"]["sources"]
    with remembered(CACHE) as hashes:
        generator, prompts = params["generator"], load_prompts(Path(params["prompts"]["path"]))
        family = _code(generator["family"], FAMILIES, hashes)
        _write(out / "generator.json", files=_files(generator, hashes), code=family)
        images = [prompt.image for prompt in prompts if prompt.image]
        references = [prompt.reference for prompt in prompts if prompt.reference]
        _write(out / "prompts.json", files=_files([params["prompts"]["path"]], hashes))
        _write(out / "images.json", files=_files(images, hashes))
        _write(out / "references.json", files=_files(references, hashes))
        for name in sources:
            hub = {"hub": found} if (found := _commits(name, resolve(name, sources), name in needed)) else {}
            _write(out / f"sources/{name}.json", **source_inputs(name, sources, hashes), **hub)
        _write(out / "audits.json", **{name: audited(name) for name in noisy_sources(params)})
        for name, entry in reward_models(params).items():
            _write(
                out / f"rewards/{name}.json", **_reward(params["reward"]["settings"] | entry.get("changes", {}), hashes)
            )
        for name, entry in params["online"]["policies"].items():
            _write(out / f"online/{name}.json", **online_inputs(entry, sources, hashes))


def source_inputs(name: str, sources: Mapping[str, Any], hashes: Hashes) -> dict[str, Any]:
    """The block of a source with its members', without its pace and price; the files that it names, its kind's code."""
    block = resolve(name, sources)
    kinds = sorted({one["kind"] for one in _blocks(block)})
    code = {kind: found for kind in kinds if (found := _code(kind, KINDS, hashes))}
    named = [block, *question_files(name, block)]
    return {"block": what_is_asked(block), "files": _files(named, hashes), "code": code}


def hold_places(params: Mapping[str, Any], folder: Path = TRAINED) -> None:
    """Put a file in the place of each source's reward model that no stage trains, and make the folder metrics/label.

    Stage evaluate depends on that folder, to which no stage writes where params have no rounds.
    A stage that asks a source depends on runs/rewards/<source>, since deps in dvc.yaml have no condition. So DVC lets
    it wait for stage `reward` where that trains the source's model, and finds a file that never changes where it does
    not. A model that an earlier run trained stays.
    """
    LABELLED.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in params["feedback"]["sources"]:
        place = folder / name
        if name in reward_models(params):
            if place.is_file():
                place.unlink()
        elif not place.exists():
            place.write_text(HELD, encoding="utf-8")


def noisy_sources(params: Mapping[str, Any]) -> list[str]:
    """The sources whose labels a policy is trained on by an objective with label_noise: from_audit, the only word."""
    settings = {name: own for name, own in params["train"].items() if isinstance(own, Mapping)}
    noisy = {name for name, own in settings.items() if isinstance(own.get("label_noise"), str)}
    entries = trained_policies(params).values()
    return sorted({one.get("source", params["feedback"]["source"]) for one in entries if one["objective"] in noisy})


def audited(source: str) -> dict[str, float | None] | None:
    """How often a source was wrong by its last audit; None without one, a rate None where the audit has none."""
    path = AUDITS / source / "audit.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return {key: found.get(key) for key in ("false_accept_rate", "false_reject_rate", "decided_accuracy")}


def online_inputs(entry: Mapping[str, Any], sources: Mapping[str, Any], hashes: Hashes) -> dict[str, Any]:
    """The recipe, the files that it and its entry of online.policies name, the code of writer, references and decoders.

    Of a lighter decoder its weights and the code of its kind count. Of a writer that is a source only
    its model counts: what it wrote is kept with the policy, so that another price or pace of the writer is no reason to
    train again.
    """
    from generators.decoders.lighter import DECODERS as LIGHTER  # imports torch

    questions = recipe_questions(entry["recipe"], entry.get("changes") or {})
    lighter = (recipe_values(entry["recipe"], entry.get("changes") or {}, "decoding") or {}).get("decoder") or {}
    files = [*map(str, recipe_files(entry["recipe"])), *_pictures(entry.get("overlay"))]
    named: list[Any] = [dict(entry), *files, lighter]
    found: dict[str, Any] = {}
    if questions:
        named.append(questions.rubric)
        if questions.writer == RUBRIC and questions.rubric:
            named.append(questions_file(Path(questions.rubric)))
        if is_source(questions.writer):
            writer = sources.get(questions.writer, {})
            found["writer"] = {key: writer.get(key) for key in ("kind", "path", "revision", "model", "base_url")}
            named.append(found["writer"])
    if lighter.get("path") and named_path(lighter["path"]) is None:  # a hub id
        revision = lighter.get("revision")
        found["decoder"] = {f"{lighter['path']}@{revision or 'main'}": hub_commit(lighter["path"], revision, True)}
    modules = [(entry.get("references"), REFERENCES), (questions.writer if questions else None, WRITERS)]
    modules += [(lighter.get("kind"), LIGHTER)]
    dotted = {name: table.get(name, name) for name, table in modules if name and (name in table or "." in name)}
    code = {name: _code(path, {}, hashes) for name, path in {**dotted, "decoders": DECODERS}.items()}
    return {"files": _files(named, hashes), "code": code, **found}


def _reward(settings: Mapping[str, Any], hashes: Hashes) -> dict[str, Any]:
    """The files of a reward model's VLM and of its rubric; the commit that a hub id stands for."""
    found: dict[str, Any] = {"files": _files([settings["path"], settings["rubric"]], hashes)}
    if named_path(settings["path"]) is None:
        revision = settings["revision"]
        found["hub"] = {f"{settings['path']}@{revision or 'main'}": hub_commit(settings["path"], revision, True)}
    return found


def _pictures(overlay: str | None) -> list[str]:
    """The pictures that an overlay's marks name, relative to its folder. What is wrong with it, `load_overlay` says."""
    if not overlay:
        return []
    try:
        given = yaml.safe_load(read_written(Path(overlay)))
    except (ValueError, yaml.YAMLError):
        return []
    marks = given.get("marks") if isinstance(given, Mapping) else None
    marks = [mark for mark in marks if isinstance(mark, Mapping)] if isinstance(marks, list) else []
    return [str(Path(overlay).parent / str(mark[key])) for mark in marks for key in ("image", "mask") if key in mark]


def _commits(name: str, block: Mapping[str, Any], needed: bool) -> dict[str, str]:
    """The commits that the hub ids of a source and of those that it lists stand for, by id and revision."""
    needs = read_block(name, block).needs
    found = {}
    if needs.model and not Path(needs.model).exists() and not COMMIT.fullmatch(needs.revision or ""):
        commit = hub_commit(needs.model, needs.revision, needed)
        found = {f"{needs.model}@{needs.revision or 'main'}": commit} if commit else {}
    for key, inner in needs.inner.items():
        found |= _commits(f"{name}.{key}", inner, needed)
    return found


def hub_commit(model: str, revision: str | None, ask: bool) -> str | None:
    """The commit of a hub id in the local cache; None where it is not known.

    ask: whether the hub is asked where the cache does not know it. So the first download, by a later stage, changes
        nothing that was recorded, and the labels are not made again.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    found = commit_in_cache(model, revision)
    try:
        return commit_on_hub(model, revision) if found is None and ask else found
    except (HFValidationError, HfHubHTTPError):  # `vfrl check` and the stage that loads it say what is wrong
        return None


def _code(name: str, table: Mapping[str, str], hashes: Hashes) -> dict[str, str]:
    """sha256 by path of the code behind a name of a table or a dotted path; empty where dvc.yaml lists it."""
    return {str(path): hashes.of(path) for path in module_files(table.get(name, name), LISTED)}


def _blocks(block: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A source's block and those of the sources that it lists."""
    return [block, *(inner for key in ("members", "of") for inner in (block.get(key) or {}).values())]


def _files(value: Any, hashes: Hashes) -> dict[str, str]:
    """sha256 by path of every file and folder that a value of params.yaml names, however deep."""
    if isinstance(value, Mapping):
        value = [inner for key, inner in value.items() if key not in NO_PATH]
    if isinstance(value, list):
        return {path: found for inner in value for path, found in _files(inner, hashes).items()}
    path = named_path(value)
    if path is None or TRAINED in path.parents:
        return {}
    inside = path.is_absolute() and path.is_relative_to(Path.cwd())
    return {str(path.relative_to(Path.cwd()) if inside else path): hashes.of(path)}


def _write(path: Path, **facts: Any) -> None:
    with atomically(path) as partial:
        partial.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
