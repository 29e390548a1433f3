"""Stage `base`: check params.yaml as a whole, and record the base policy and the inputs by content."""

import json
import logging
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.command import PATH, out_option, stage_command, tracker_option
from pipeline.configs import GeneratorConfig
from pipeline.params import load_params, section

logger = logging.getLogger(__name__)


@stage_command
@out_option
@click.option("--inputs", type=PATH, required=True, help="Folder to write: what params.yaml names, by content.")
@tracker_option
def main(out: Path, inputs: Path, tracker: str | None) -> None:
    """Check params.yaml as a whole; write the base policy, which is the generator itself, and the inputs' hashes.

    A tracker is only checked here, so that a run is not refused when it comes to training.
    """
    from data.manifest import write_manifest
    from generators.core.identity import identify
    from pipeline.checked import Found, recalled, remember
    from pipeline.graph import needed_sources
    from pipeline.inputs import hold_places, write_inputs
    from pipeline.state import check_outputs

    check_outputs(Path())
    params = load_params()
    with tempfile.TemporaryDirectory() as folder:
        found = recalled(params, Path(folder))
    checked = None
    if found is None:
        from pipeline.check import check_params  # and torch with it, which takes seconds
        from pipeline.summary import headline

        checked = check_params()
        found = Found(headline(checked), checked.notes)
    logger.info("%s: %s", params["prompts"]["path"], found.headline)
    for note in found.notes:
        logger.warning(note)
    generator = section("generator", GeneratorConfig)
    for written in (out, inputs):
        shutil.rmtree(written, ignore_errors=True)
    write_inputs(params, inputs, needed_sources(params))
    hold_places(params)
    if checked and checked.generator:
        remember(params, inputs, found)
    out.mkdir(parents=True)
    policy = identify(generator.family, generator.path, generator.revision, asdict(generator)["components"])
    (out / "policy.json").write_text(json.dumps(policy, indent=1) + "\n")
    write_manifest(out, "policy", fingerprint=policy["fingerprint"])
    logger.info("base is %s (%s), fingerprint %.12s", generator.path, generator.family, policy["fingerprint"])


if __name__ == "__main__":
    main()
