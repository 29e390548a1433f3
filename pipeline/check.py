"""All of params.yaml is checked before anything is computed from a part of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from data.dense import window_of_each
from data.first_frames import check_all_or_none, check_first_frames
from data.prompts import Prompt, extended, load_prompts, select
from data.tables.questions import by_prompt, read_questions
from feedback.core.kinds import question_files, read_block, resolve
from feedback.core.rubric import AnyRubric, load_rubric
from feedback.differentiable.asks import RUBRIC
from generators.core.checkpoint import Checkpoint, NotReachedError
from generators.core.decoding import Decoding, open_lighter, whole_clip_needed
from generators.core.encoding import check_images
from generators.core.generator import Generator, first_step
from generators.core.load import examine_generator
from generators.core.process import VariancePreserving
from generators.core.rollout import Sampling
from generators.core.size import VideoSize
from generators.core.solvers import check_solver, solver_scheduler
from pipeline.advice import advice, otherwise_than_trained
from pipeline.audit import check_known
from pipeline.by_rewards import check_judge, check_unread
from pipeline.configs import (
    AuditConfig,
    CheckConfig,
    DenseEntry,
    EffectsConfig,
    EvaluateConfig,
    ExtendConfig,
    GeneratorConfig,
    LabelConfig,
    OnlineEntry,
    PromptConfig,
    PromptsConfig,
    ReportConfig,
    RewardConfig,
    RewardEntry,
    SelectConfig,
    build_config,
    reward_config,
    train_config,
)
from pipeline.graph import (
    SHAPES,
    check_shapes,
    entry_of,
    needed_sources,
    off_policy_rounds,
    reward_models,
    trained_policies,
    unused_policies,
    unused_rewards,
    unused_rounds,
    validate_graph,
)
from pipeline.inputs import noisy_sources
from pipeline.judges import check_references, members_of
from pipeline.online import check_held_out
from pipeline.params import ParamsError, aliases, load_params, section
from pipeline.recipes import load_recipe
from pipeline.replicates import SEED, SEEDS
from pipeline.reward import check_backbone, text_of
from pipeline.state import check_outputs
from rl.objectives import OBJECTIVES
from rl.online.config import GrpoConfig, OnlineConfig, RewardsConfig
from rl.online.sde import check_generator as check_generator_of_rewards
from rl.pairing import check_source
from rl.training.config import PolicyConfig, TrainConfig
from rl.training.policies import check_trainable, trained_denoisers

SECTIONS = {
    "generator": GeneratorConfig,
    "prompts": PromptsConfig,
    "video": VideoSize,
    "generate": Sampling,
    "label": LabelConfig,
    "audit": AuditConfig,
    "evaluate.generate": Sampling,
    "effects": EffectsConfig,
    "report": ReportConfig,
    "select": SelectConfig,
    "select.generate": Sampling,
    "online.check": CheckConfig,
    "online.prompt": PromptConfig,
    "reward.settings": RewardConfig,
}


# What the errors of `examine_generator` begin with -> its key in params.yaml
ARGUMENTS = {
    "path": "generator.path",
    "revision": "generator.revision",
    "max_prompt_tokens": "generator.max_prompt_tokens",
    "vae_tiling": "generator.vae_tiling",
    "attention": "generator.attention",
    "embedded_guidance": "generator.embedded_guidance",
    "num_frames": "video.num_frames",
    "height": "video.height",
    "width": "video.width",
}


class Checked(NamedTuple):
    """What was read of a params.yaml that is valid."""

    params: dict[str, Any]
    prompts: list[Prompt]
    generator: Generator | None  # without its weights; None: the Hub was not reached
    notes: list[str]  # what a person should know, and is no error


def check_params(with_generator: bool = True) -> Checked:
    """Raises ParamsError or ValueError where a later stage would: a typo must not cost the clips before it.

    with_generator: look into the generator's checkpoint too.
    """
    check_outputs(Path())
    params = load_params()
    check_shapes(params)
    for name, cls in SECTIONS.items():
        section(name, cls)
    validate_graph(params, OBJECTIVES)  # before `evaluate`: a judge's misspelt name comes before what follows from it
    _check_selections(section("evaluate", EvaluateConfig), section("evaluate.generate", Sampling))
    _check_build(params["build"].get("sources") or {}, params["feedback"]["sources"])
    prompts = load_prompts(Path(section("prompts", PromptsConfig).path))
    _check_splits(params, prompts)
    _check_sources(params, prompts)
    _check_rewards(params)
    _check_comparing(params)
    for name in params["extend"]:
        _check_extension(section(f"extend.{name}", ExtendConfig), name, prompts)
    _check_online(params, prompts)
    _check_dense(params)
    _check_reward_models(params)
    _check_audit(section("audit", AuditConfig), params["feedback"]["sources"], prompts)
    for name, config in _training_configs(params).items():
        objective = trained_policies(params)[name]["objective"]
        if config.full and params["generator"]["dtype"] != "float32":
            raise ParamsError(f"train.{objective}, of {name}: full fine-tuning needs generator.dtype: float32")
        if name in params["select"]["policies"] and config.checkpoint_every >= config.steps:
            raise ParamsError(
                f"select.policies: {name} is trained for {config.steps} steps with a checkpoint every"
                f" {config.checkpoint_every}, so there is only one; lower checkpoint_every in train.{objective} or"
                " train.common"
            )
    _check_first_seed(params)
    unused = [*unused_policies(params), *unused_rounds(params), *unused_rewards(params)]
    notes = [*advice(params), *_unread(params), *off_policy_rounds(params), *unused, *_uneven_batches(params)]
    notes += [*aliases(), *otherwise_than_trained(params)]
    notes += _other_questions(params, [prompt.prompt for prompt in prompts])
    generator = None
    if with_generator:
        try:
            generator = check_generator(section("generator", GeneratorConfig), section("video", VideoSize))
        except NotReachedError as error:
            notes.append(str(error))
    if generator:
        notes += _check_fits(params, generator, prompts)
    return Checked(params, prompts, generator, notes)


def _training_configs(params: Mapping[str, Any]) -> dict[str, TrainConfig]:
    """The settings of each policy that is trained on clips, by its name."""
    return {
        name: train_config(OBJECTIVES[entry["objective"]], entry_of(params, name))
        for name, entry in trained_policies(params).items()
    }


def _check_first_seed(params: Mapping[str, Any]) -> None:
    """Where there are several seeds, the policies without a seed of their own are trained with the first."""
    first, *further = params[SEEDS]
    entries, configs = trained_policies(params) | params["online"]["policies"], _training_configs(params)
    for name, entry in entries.items() if further else ():
        if entry.get(SEED) is not None:
            continue
        if "objective" in entry:
            seed = configs[name].seed
            where = f"train.{entry['objective']} or train.common"
        else:
            seed = load_recipe(entry["recipe"], entry.get("changes") or {}).engine.seed
            where = f"its changes or recipe {entry['recipe']}"
        if seed != first:
            raise ParamsError(
                f"{SEEDS} begins with {first}, but {name} is trained with seed {seed} (in {where}); write that seed "
                f"first in {SEEDS}, or {first} there, and run vfrl seeds"
            )


def check_generator(generator: GeneratorConfig, video: VideoSize) -> Generator:
    """The generator, by its small files; raises as `examine_generator` does, naming the key of params.yaml."""
    try:
        return examine_generator(**asdict(generator), size=video)
    except ValueError as error:
        argument, _, problem = str(error).partition(": ")
        key = f"generator.{argument}" if argument.startswith("components") else ARGUMENTS.get(argument)
        message = f"{key}: {problem}" if key else str(error)
        raise (NotReachedError if isinstance(error, NotReachedError) else ValueError)(message) from error


def _check_fits(params: Mapping[str, Any], generator: Generator, prompts: Sequence[Prompt]) -> list[str]:
    """The generator suits prompts, solvers and what is trained; returns what is no error and may be a mistake."""
    path, size = section("prompts", PromptsConfig).path, generator.size
    warning = None
    try:
        for chosen in _clip_sets(params, prompts).values():
            warning = check_images(generator, chosen) or warning
        check_first_frames([prompt for prompt in prompts if prompt.image], size.height, size.width)
    except ValueError as error:
        raise ParamsError(f"{path}: {error}") from error
    _check_shown(params, generator)
    _check_starts(params, generator)
    for key, solver in _solvers(params).items():
        try:
            check_solver(generator.process, solver)
            if isinstance(generator.process, VariancePreserving):  # its table has been made, by diffusers
                solver_scheduler(generator.scheduler_config, solver)
        except ValueError as error:
            raise ParamsError(f"{key}: {error}") from error
    for name, config in _trainings(params).items():
        try:
            trained = trained_denoisers(generator.denoiser_names, config)
            check_trainable(generator, config)
        except ValueError as error:
            raise ParamsError(f"{name}: {error}") from error
        for denoiser in trained:
            _check_lora_targets(name, config, generator.checkpoint, denoiser)
    for name in params["online"]["policies"]:
        entry = section(f"online.policies.{name}", OnlineEntry)
        recipe = load_recipe(entry.recipe, entry.changes)
        if isinstance(recipe.engine, GrpoConfig):
            _check_steps(f"online.policies.{name}", generator)
        if not recipe.by_rewards:
            check_decoding(recipe.decoding, generator, f"online.policies.{name}")
    own = section("online.prompt", PromptConfig)
    for named in sorted({own.recipe, *own.changes}):
        if (decoding := load_recipe(named, own.changes_of(named)).decoding).decoder:
            check_decoding(decoding, generator, f"online.prompt, recipe {named}")
    unguided = [
        f"{key}: negative_prompt is set and guidance is 1, which leads away from nothing"
        for key in _sampled(params)
        if (how := section(key, Sampling)).negative_prompt and how.guidance == 1
    ]
    return [*([f"{path}: {warning}"] if warning else []), *unguided]


def _check_steps(name: str, generator: Generator) -> None:
    """The generator's steps can be drawn, for rollout sde."""
    try:
        check_generator_of_rewards(generator)
    except ValueError as error:
        raise ParamsError(f"{name}: engine.{error}") from error


def check_decoding(decoding: Decoding, generator: Generator, where: str) -> None:
    """The generator's clips can be decoded so; of a lighter decoder no weights are read."""
    if decoding.decoder is None and decoding.mode == "windowed" and not generator.windows:
        raise ParamsError(f"{where}: decoding.{whole_clip_needed(generator)}")
    try:
        open_lighter(generator, decoding, "meta")
    except ValueError as error:
        raise ParamsError(f"{where}: decoding.{error}") from error


def _sampled(params: Mapping[str, Any]) -> list[str]:
    """The sections by which clip sets are sampled."""
    used = {"generate": params["rounds"], "select.generate": params["select"]["policies"]}
    return ["evaluate.generate", *(name for name, users in used.items() if users)]


def _solvers(params: Mapping[str, Any]) -> dict[str, str]:
    """The solver of each section that samples clips."""
    found = {name: str(section(name, Sampling).solver) for name in _sampled(params)}
    for name, config in _trainings(params).items():
        if isinstance(config, OnlineConfig):
            found[name] = config.solver
        elif isinstance(config, TrainConfig) and config.preview:
            found[f"{name}.preview"] = config.preview.solver
    return found


def _trainings(params: Mapping[str, Any]) -> dict[str, PolicyConfig]:
    """The settings of each kind of training that the run has, by where they stand."""
    found: dict[str, PolicyConfig] = {}
    for name, config in _training_configs(params).items():
        entry, where = trained_policies(params)[name], entry_of(params, name)
        changed = where if entry.get("changes") else f"train.{entry['objective']} (or train.common)"
        found.setdefault(changed, config)
    for name in params["online"]["policies"]:
        online = section(f"online.policies.{name}", OnlineEntry)
        found[f"online.policies.{name}"] = load_recipe(online.recipe, online.changes).engine
    return found


def _check_lora_targets(name: str, config: PolicyConfig, checkpoint: Checkpoint, denoiser: str) -> None:
    """The endings of module names that a section trains are those of modules; of a hub id that is not known here."""
    modules = [] if config.full else checkpoint.modules(denoiser)
    for target in (config.lora_targets or ()) if modules else ():
        if not any(module == target or module.endswith(f".{target}") for module in modules):
            raise ParamsError(
                f"{name}: lora_targets: {target!r} is the ending of no module of {checkpoint.path}; such are "
                f"{', '.join(sorted(_endings(modules))[:8])}"
            )


def _endings(modules: Sequence[str]) -> set[str]:
    """The last two parts of each name, without numbers, such as attn1.to_q."""
    return {".".join([part for part in name.split(".") if not part.isdigit()][-2:]) for name in modules}


def _check_splits(params: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
    """There are prompts for every clip set and every online policy, all of them with an image or none."""
    for key, chosen in _clip_sets(params, prompts).items():
        try:
            check_all_or_none(chosen)
        except ValueError as error:
            raise ParamsError(f"{key}: {error}") from error


def _clip_sets(params: Mapping[str, Any], prompts: Sequence[Prompt]) -> dict[str, list[Prompt]]:
    """The prompts of each section that samples clips. Raises ParamsError where there are none."""
    splits: dict[str, tuple[str, int | None]] = {
        key: (how.split, how.prompts) for key in _sampled(params) if (how := section(key, Sampling))
    }
    for name in params["online"]["policies"]:
        splits[f"online.policies.{name}"] = (section(f"online.policies.{name}", OnlineEntry).split, None)
    found = {}
    for key, (split, count) in splits.items():
        try:
            found[key] = select(prompts, split, count)
        except ValueError as error:
            raise ParamsError(f"{key}: {error} of {section('prompts', PromptsConfig).path}") from error
    return found


def _check_shown(params: Mapping[str, Any], generator: Generator) -> None:
    """No judge that the run uses shows first frames where the generator takes none, so that clips have none."""

    def check(name: str, block: Mapping[str, Any]) -> None:
        needs = read_block(name, block).needs
        if needs.rubric and load_rubric(Path(needs.rubric)).first_frame:
            raise ParamsError(
                f"feedback.sources.{name}.rubric: {needs.rubric} shows the first frame, and the generator "
                f"{generator.checkpoint.path} takes none; take first_frame out of the rubric"
            )
        for key, inner in needs.inner.items():
            check(f"{name}.{key}", inner)

    if generator.image != "none":
        return
    for name in sorted(needed_sources(params)):
        check(name, resolve(name, params["feedback"]["sources"]))
    for name in params["online"]["policies"]:
        entry = section(f"online.policies.{name}", OnlineEntry)
        writing = load_recipe(entry.recipe, entry.changes).questions
        if writing and writing.writer == RUBRIC and writing.rubric and load_rubric(Path(writing.rubric)).first_frame:
            raise ParamsError(
                f"online.policies.{name}: questions.rubric: {writing.rubric} shows the first frame, and the generator "
                f"{generator.checkpoint.path} takes none; take first_frame out of the rubric"
            )


def _unread(params: Mapping[str, Any]) -> list[str]:
    """Sections that nothing reads: misspelt, or of an objective that is none."""
    known = {name.split(".")[0] for name in (*SECTIONS, *SHAPES)}
    unread = [name for name in params if name not in known]
    unread += [f"train.{name}" for name in params["train"] if name not in ("common", *OBJECTIVES)]
    return [f"nothing reads the section {name}" for name in unread]


def _uneven_batches(params: Mapping[str, Any]) -> list[str]:
    """Judges whose batches a resumed run would compose differently, so that an answer's last digits may change."""
    size, sources = params["label"]["batch_size"], params["feedback"]["sources"]
    notes = []
    for name in sorted(needed_sources(params)):
        if (own := sources[name].get("batch_size")) and size % own:
            notes.append(
                f"label.batch_size is {size}, no multiple of feedback.sources.{name}.batch_size ({own}): labelling "
                "that is resumed after a kill forms other batches, so probabilities may differ in their last digits"
            )
    return notes


def _other_questions(params: Mapping[str, Any], prompts: Sequence[str]) -> list[str]:
    """Files with questions about prompts that the set lacks: probably those of another version of it."""
    sources, known, notes = params["feedback"]["sources"], set(prompts), dict[str, None]()
    for name in sorted(needed_sources(params)):
        for file in question_files(name, resolve(name, sources)):
            asked = by_prompt(read_questions(Path(file)))
            if more := [prompt for prompt in asked if prompt not in known]:
                which = f"{len(more)} of its {len(asked)} prompts, such as {more[0]!r}"
                notes[f"{file} has questions about prompts that the prompt set lacks: {which}"] = None
    return list(notes)


def _check_dense(params: Mapping[str, Any]) -> None:
    """Sets of pairs with one start: there are clips and solver steps for them, and a source that can label windows."""
    how, name = section("generate", Sampling), params["feedback"]["source"]
    for key in params["dense"]:
        entry = section(f"dense.{key}", DenseEntry)
        try:
            first_step(entry.noise, how.steps)
        except ValueError as error:
            raise ParamsError(f"dense.{key}.{error} (generate.steps)") from error
        if entry.pairs_per_prompt > how.samples_per_prompt:
            raise ParamsError(
                f"dense.{key}.pairs_per_prompt is {entry.pairs_per_prompt}, but each starts from another clip, and a "
                f"prompt has {how.samples_per_prompt} in {entry.round} (generate.samples_per_prompt)"
            )
        if not _labels_windows(name, resolve(name, params["feedback"]["sources"])):
            raise ParamsError(
                f"dense.{key}: feedback.source is {name}, which compares clips or asks people; neither labels windows"
            )


def _labels_windows(name: str, block: Mapping[str, Any]) -> bool:
    """Whether a source and those within it can judge some frames of a clip."""
    read = read_block(name, block)
    inner = all(_labels_windows(f"{name}.{key}", one) for key, one in read.needs.inner.items())
    return inner and not read.compares and not read.kind.people


def _check_starts(params: Mapping[str, Any], generator: Generator) -> None:
    """The generator can start from a noised clip, and its latent frames lie in one window each."""
    for key in params["dense"]:
        if not generator.restarts:
            raise ParamsError(f"dense.{key}: {generator.family} samples a clip part by part, so no clip starts noised")
        entry = section(f"dense.{key}", DenseEntry)
        try:
            window_of_each(generator.size.num_frames, entry.window, generator.latent_shape[1])
        except ValueError as error:
            raise ParamsError(f"dense.{key}: {error}") from error


def _check_online(params: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
    """Every online policy's recipe with its changes, and its judges."""
    sources = params["feedback"]["sources"]
    for name in params["online"]["policies"]:
        entry = section(f"online.policies.{name}", OnlineEntry)
        try:
            recipe = load_recipe(entry.recipe, entry.changes)
            judge = resolve(entry.judge, sources)
            if isinstance(recipe.engine, RewardsConfig):
                check_judge(entry.judge, judge, recipe.engine)
                check_unread(entry.overlay, entry.references)
            else:
                members_of(entry.judge, {entry.judge: judge})
            check_held_out(entry.held_out, resolve(entry.held_out, sources), recipe.engine)
            check_references(entry.references)
            if recipe.questions and recipe.questions.writer == RUBRIC and recipe.questions.rubric:
                asked, rubric = select(prompts, entry.split), load_rubric(Path(recipe.questions.rubric))
                rubric.check_prompts([prompt.prompt for prompt in asked])
                check_shown_frames(rubric, asked, f"rubric: {recipe.questions.rubric}")
        except (ParamsError, ValueError) as error:
            raise ParamsError(f"online.policies.{name}: {error}") from error
        if recipe.engine.full and params["generator"]["dtype"] != "float32":
            raise ParamsError(f"online.policies.{name}: full fine-tuning needs generator.dtype: float32")
    own = section("online.prompt", PromptConfig)
    for named in sorted({own.recipe, *own.changes}):
        try:
            load_recipe(named, own.changes_of(named))
        except ParamsError as error:
            raise ParamsError(f"online.prompt, recipe {named}: {error}") from error


def _check_reward_models(params: Mapping[str, Any]) -> None:
    """What the VLM of each reward model is shown, and where that VLM lies."""
    for name in reward_models(params):
        where = f"reward.models.{name}"
        config = reward_config(section(where, RewardEntry), params["reward"]["settings"])
        try:
            text_of(config.rubric)
            check_backbone(config.path, config.revision)
        except ValueError as error:
            raise ParamsError(f"{where}: {error}") from error


def _check_extension(config: ExtendConfig, name: str, prompts: Sequence[Prompt]) -> None:
    try:
        extended(prompts, load_prompts(Path(config.prompts)), config.template)
    except (ValueError, OSError) as error:
        raise ParamsError(f"extend.{name}: {error}") from error


def _check_selections(evaluate: EvaluateConfig, sampled: Sampling) -> None:
    """top_k and best_of choose from the clips that each prompt has."""
    top_k, best_of = evaluate.top_k, evaluate.best_of
    wanted = {"top_k.k": top_k.k if top_k else None, "best_of.n": best_of.n if best_of else None}
    for key, clips in wanted.items():
        if clips is not None and clips > sampled.samples_per_prompt:
            raise ParamsError(
                f"evaluate.{key} is {clips}, but a prompt has {sampled.samples_per_prompt} clips "
                "(evaluate.generate.samples_per_prompt)"
            )


def _check_build(own: Mapping[str, Any], sources: Mapping[str, Any]) -> None:
    """Section `build` for every source."""
    for name in own:
        if name not in sources:
            raise ParamsError(f"build.sources.{name}: no such source; feedback.sources has {', '.join(sources)}")
    for name in sources:
        build_config(name)


def _check_sources(params: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
    """Every source's block, and whether the needed ones can judge these prompts."""
    needed, sources = needed_sources(params), params["feedback"]["sources"]
    for name in sources:
        _check_source(name, resolve(name, sources), prompts if name in needed else None)


def _check_rewards(params: Mapping[str, Any]) -> None:
    """A source that only measures trains by its score; else stage build would find no label, after all the clips."""
    if not params["rounds"]:
        return
    named = {"feedback.source": [params["feedback"]["source"]], "comparison.sources": params["comparison"]["sources"]}
    for key, names in named.items():
        for name in names:
            read = read_block(name, resolve(name, params["feedback"]["sources"]))
            if not read.labels and (reward := build_config(name).reward) != "score":
                raise ParamsError(
                    f"{key}: {name} measures clips and labels none, but its reward is {reward}. Set "
                    f"build.sources.{name}: {{reward: score, scale: …, shift: …, pairs: quantile}}, or its threshold"
                )


def _check_comparing(params: Mapping[str, Any]) -> None:
    """A source that compares clips stands only where comparisons are of use, and `build` takes what it gives."""
    sources = params["feedback"]["sources"]
    comparing = {name for name in sources if read_block(name, resolve(name, sources)).compares}
    one_by_one = {
        "evaluate.judges": params["evaluate"]["judges"],
        "select.judges": params["select"]["judges"],
        **{
            f"online.policies.{name}.{key}": [entry[key]]
            for name, entry in params["online"]["policies"].items()
            for key in ("judge", "held_out")
        },
        **{f"online.prompt.{key}": [params["online"]["prompt"][key]] for key in ("judge", "held_out")},
        "online.prompt.also": params["online"]["prompt"].get("also", []),
    }
    for name, entry in params["preferences"].items():
        if entry["source"] not in comparing:
            raise ParamsError(
                f"preferences.{name}.source: {entry['source']} judges one clip at a time; sources that compare have "
                f"a rubric with compares: true: {', '.join(sorted(comparing)) or 'none here'}"
            )
    for where, names in one_by_one.items():
        if wrong := comparing.intersection(names):
            raise ParamsError(
                f"{where}: {min(wrong)} compares two clips at once, so it cannot judge one alone; it can "
                "compare policies in the section preferences"
            )
    for name in {params["feedback"]["source"], *params["comparison"]["sources"]}:
        config = build_config(name)
        check_source(name in comparing, config.pairs, config.reward, name)


def _check_audit(config: AuditConfig, sources: Mapping[str, Any], prompts: Sequence[Prompt]) -> None:
    """The audited sources and the people beside them exist, and the right verdict of some clips is known."""
    people = config.human.source if config.human else None
    for key, name in [*(("sources", name) for name in config.sources), *([("human.source", people)] if people else [])]:
        if name not in sources:
            raise ParamsError(f"audit.{key}: {name!r} is unknown; known are {', '.join(sources)}")
    if people and sources[people]["kind"] != "human":
        raise ParamsError(f"audit.human.source is {people}, of kind {sources[people]['kind']}; wanted is kind human")
    if people and read_block(people, sources[people]).compares:
        raise ParamsError(
            f"audit.human.source: {people} compares two clips at once; wanted people who rate single clips"
        )
    if config.sources:
        check_known(config, prompts)
    if missing := [name for name in noisy_sources(load_params()) if name not in config.sources]:
        raise ParamsError(
            f"audit.sources lacks {', '.join(missing)}, whose audit a label_noise: from_audit in section train reads: "
            "name it there, or set a number"
        )


def check_shown_frames(rubric: AnyRubric, prompts: Sequence[Prompt], where: str) -> None:
    """Raises ParamsError where the rubric shows first frames and a prompt has no image."""
    if rubric.first_frame and (lacking := [prompt.prompt_id for prompt in prompts if not prompt.image]):
        raise ParamsError(
            f"{where} shows the first frame, but {len(lacking)} of {len(prompts)} prompts have no image, such as "
            f"{lacking[0]}; fill the column image, or take first_frame out of the rubric"
        )


def _check_source(name: str, given: Mapping[str, Any], prompts: Sequence[Prompt] | None) -> None:
    """A source's block and, of a panel, its members'. prompts: what it judges; None where it is not needed."""
    read = read_block(name, given)
    if prompts is not None and read.kind.check_prompts:
        read.kind.check_prompts([prompt.prompt for prompt in prompts])
    if prompts is not None and read.needs.rubric:
        where, rubric = f"feedback.sources.{name}.rubric: {read.needs.rubric}", load_rubric(Path(read.needs.rubric))
        try:
            rubric.check_prompts(prompt.prompt for prompt in prompts)
        except ValueError as error:
            raise ParamsError(f"{where}: {error}") from error
        check_shown_frames(rubric, prompts, where)
    for key, inner in read.needs.inner.items():
        _check_source(f"{name}.{key}", inner, prompts)
