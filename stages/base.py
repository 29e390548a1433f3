"""Stage `base`: check params.yaml as a whole, and write down which generator the base policy is."""

import json
import logging
import shutil
from pathlib import Path

from pipeline.command import out_option, stage_command
from pipeline.configs import GeneratorConfig
from pipeline.params import section

logger = logging.getLogger(__name__)


@stage_command
@out_option
def main(out: Path) -> None:
    """Check params.yaml as a whole and write the base policy, which is the generator itself."""
    from data.manifest import write_manifest
    from generators.core.identity import identify
    from pipeline.check import check_params

    check_params()
    generator = section("generator", GeneratorConfig)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    found = identify(generator.family, generator.path, generator.revision)
    (out / "policy.json").write_text(json.dumps(found, indent=1) + "\n")
    write_manifest(out, "policy", fingerprint=found["fingerprint"])
    logger.info("base is %s (%s), fingerprint %.12s", generator.path, generator.family, found["fingerprint"])


if __name__ == "__main__":
    main()
