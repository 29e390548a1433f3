"""Whether the generator of params.yaml can be read on this machine, and makes the clips that params.yaml wants."""

from pathlib import Path

from commands.doctor.machine import BROKEN, NOTE, OK, Finding
from generators.core.checkpoint import Checkpoint, NotReachedError
from generators.core.size import VideoSize
from pipeline.check import check_generator
from pipeline.configs import GeneratorConfig
from pipeline.summary import generator_line

WHAT = "generator"


def find_generator(config: GeneratorConfig, video: VideoSize) -> Finding:
    """The line of the generator. No weights are read."""
    try:
        generator = check_generator(config, video)
    except NotReachedError as error:
        return Finding(BROKEN, WHAT, str(error))
    except ValueError as error:
        return Finding(BROKEN, WHAT, str(error))
    line = generator_line(config, generator)
    if not all(folder.is_dir() for folder in config.folders) and (missing := missing_weights(generator.checkpoint)):
        return Finding(NOTE, WHAT, f"{line}; {missing}")
    return Finding(OK, WHAT, line)


def missing_weights(checkpoint: Checkpoint) -> str | None:
    """What a hub id's cache lacks; None where it has all weights."""
    from huggingface_hub import try_to_load_from_cache

    if (weights := checkpoint.weights) is None:
        return "the Hub is not reached, so nothing is known of the weights in its cache"
    absent = sum(
        not Path(source.path).is_dir()
        and not isinstance(try_to_load_from_cache(source.path, name, revision=source.revision or "main"), str)
        for source, name, _ in weights
    )
    return f"{absent} of {len(weights)} files of weights are downloaded at first use" if absent else None
