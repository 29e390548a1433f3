"""The table of docs/generators.md, made from the families' code; each of its rows is a layout that a tiny model has.

`python -m tests.generators.families.test_table` prints it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from generators.core.families import FAMILIES
from generators.core.generator import Generator
from generators.core.load import examine_generator
from generators.core.process import Epsilon, FlowMatching
from generators.core.size import VideoSize
from generators.core.solvers import SOLVERS, solver_scheduler
from generators.tiny.variants import VARIANTS, params_of
from tests.generators.families.test_published import PUBLISHED, published

DOCS = Path("docs/generators.md")
COG, HUNYUAN = "CogVideoX", "tencent-hunyuan-community, not for the EU"
UNKNOWN = "not known of the transformer; the rest is HunyuanVideo's and FLUX.1 Redux's"
SD = "of the Stable Diffusion 1.5 in use"

# preset -> the variant of vfrl tiny that the tests of tests/generators run, and the licence of the published weights
ROWS = {
    "wan2.1": ("wan2.1-t2v", "Apache-2.0"),
    "generators/wan2.1-i2v": ("wan2.1-i2v", "Apache-2.0"),
    "generators/wan2.2-t2v": ("wan2.2-t2v", "Apache-2.0"),
    "generators/wan2.2-i2v": ("wan2.2-i2v", "Apache-2.0"),
    "generators/wan2.2-ti2v": ("wan2.2-ti2v", "Apache-2.0"),
    "generators/cogvideox-2b": ("cogvideox-2b", "Apache-2.0"),
    "generators/cogvideox-5b": ("cogvideox-5b", COG),
    "generators/cogvideox-5b-i2v": ("cogvideox-5b-i2v", COG),
    "generators/cogvideox1.5-5b": ("cogvideox1.5-5b", COG),
    "generators/cogvideox1.5-5b-i2v": ("cogvideox1.5-5b-i2v", COG),
    "generators/animatediff": ("animatediff", SD),
    "generators/pia": ("pia", SD),
    "generators/unet3d": ("unet3d", "CC-BY-NC-4.0"),
    "generators/hunyuan-video": ("hunyuan-video-t2v", HUNYUAN),
    "generators/hunyuan-video-i2v": ("hunyuan-video-i2v", HUNYUAN),
    "generators/hunyuan-video-i2v-33ch": ("hunyuan-video-i2v-33ch", HUNYUAN),
    "generators/kandinsky5": ("kandinsky5-t2v", "MIT"),
    "generators/kandinsky5-i2v": ("kandinsky5-i2v", "MIT"),
    "generators/framepack": ("framepack-i2v", UNKNOWN),
    "generators/framepack-f1": ("framepack-f1", UNKNOWN),
    "generators/ltx-video": ("ltx0.9-ti2v", "Lightricks' own: License.txt beside them"),
    "generators/ltx-video-13b": ("ltx0.9.7-ti2v", "LTXV Open Weights"),
}
HEAD = (
    "family", "preset", "from text", "from a first frame", "predicts", "guidance", "LoRA", "all weights",
    "online decoding", "solvers", "frames", "licence of the weights",
)  # fmt: skip
PROBED = 150  # numbers of frames that are tried


def frames(preset: str) -> str:
    """The numbers of frames that the family accepts, as a rule."""
    accepted = []
    for number in range(2, PROBED):
        try:
            published(preset, number)
        except ValueError:
            continue
        accepted.append(number)
    if len(accepted) == 1:
        return f"{accepted[0]}, no other"
    steps = [after - before for before, after in zip(accepted, accepted[1:], strict=False)]
    step = steps[-1]
    if len(set(steps)) == 2 and steps == sorted(steps):  # FramePack's section, and a shorter one
        return f"{step}k + {accepted[-1] % step}, {steps[0]}k + {accepted[0] % steps[0]} below"
    assert len(set(steps)) == 1, f"{preset} accepts {accepted}"
    if step == 1:
        return "any" if accepted[-1] == PROBED - 1 else f"at most {accepted[-1]}"
    rule = f"{step}k + {accepted[0] % step}"
    return rule if accepted[0] <= step + 1 else f"{rule}, at least {accepted[0]}"


def abilities(generator: Generator) -> dict[str, str]:
    """What a row says of a family's reading of a checkpoint, but for sizes and the licence."""
    flow, epsilon = isinstance(generator.process, FlowMatching), isinstance(generator.process, Epsilon)
    embedded = generator.default_embedded_guidance
    return {
        "family": f"`{generator.family}`",
        "from text": "–" if generator.image == "needed" else "yes",
        "from a first frame": {"none": "–", "optional": "optional", "needed": "needed"}[generator.image],
        "predicts": "velocity" if flow else "ε" if epsilon else "v",
        "guidance": "classifier-free" if embedded is None else f"embedded, {embedded}; also classifier-free",
        "LoRA": "yes" if generator.takes_lora else "–",
        "all weights": "yes",
        "online decoding": "exact, windowed" if generator.windows else "exact",
        "solvers": ", ".join(f"`{name}`" for name in solvers(generator)),
    }


def solvers(generator: Generator) -> Iterator[str]:
    for name in SOLVERS:
        try:
            solver_scheduler(generator.scheduler_config, name)
        except ValueError:
            continue
        yield name


def table() -> list[str]:
    """The table's lines."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for preset, (_, licence) in ROWS.items():
        row = abilities(published(preset)) | {"preset": f"`{preset}`", "frames": frames(preset), HEAD[-1]: licence}
        lines.append(f"| {' | '.join(row[name] for name in HEAD)} |")
    return lines


@pytest.mark.ci
def test_the_table_of_the_docs_is_what_the_code_says():
    assert "\n".join(table()) in DOCS.read_text(encoding="utf-8"), "\n".join(["paste this:", *table()])


def test_every_published_generator_and_every_family_has_a_row():
    assert ROWS.keys() == PUBLISHED.keys()
    assert {VARIANTS[variant].family for variant, _ in ROWS.values()} == FAMILIES.keys()


@pytest.mark.parametrize("preset", ROWS)
def test_the_tiny_model_behind_a_row_can_do_the_same(preset, tiny_model):
    variant = VARIANTS[ROWS[preset][0]]
    params = params_of(variant, str(tiny_model(ROWS[preset][0])))
    tiny = examine_generator(size=VideoSize(**params["video"]), **params["generator"])

    assert abilities(tiny) == abilities(published(preset))
    if not published(preset).checkpoint.elsewhere:  # the tiny FramePack is one folder
        assert tiny.checkpoint.index["_class_name"] == PUBLISHED[preset][0]["model_index.json"]["_class_name"]


if __name__ == "__main__":
    sys.stdout.write("\n".join([*table(), ""]))
