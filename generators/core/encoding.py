"""Prompts and first frames to conditions, once a prompt, before any clip is sampled."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from data.first_frames import first_frames
from data.policies import BASE, PROJECTED
from data.prompts import Prompt
from data.store import PromptConditions
from generators.core.conditions import Conditions
from generators.core.generator import Generator
from generators.core.process import FlowMatching

logger = logging.getLogger(__name__)

ENCODING = ("text", "image", "vae")  # the PARTS that `encode` needs


class Encoded(NamedTuple):
    """Prompts and their first frames as conditions of a generator."""

    conditions: PromptConditions
    images: Mapping[str, np.ndarray]  # prompt_id -> uint8 (H, W, 3); empty where it takes none
    # family, shift (null: no flow), negative_prompt; embedded_guidance where it is an input; unconditional and its
    # scale where they are not the policy's own and 1
    facts: Mapping[str, Any]

    def of(self, prompt_ids: Sequence[str]) -> "Encoded":
        """Those of some of the prompts."""
        kept = {prompt_id: self.conditions.prompts[prompt_id] for prompt_id in prompt_ids}
        images = {name: self.images[name] for name in prompt_ids if name in self.images}
        return Encoded(self.conditions._replace(prompts=kept), images, self.facts)


def encode(
    generator: Generator,
    prompts: Sequence[Prompt],
    negative_prompt: str | None = None,
    texts: Mapping[str, str] | None = None,
) -> Encoded:
    """The prompts and their first frames as conditions on the CPU.

    negative_prompt: what guidance leads away from; None: the pipeline's own. texts: the generator's inputs in place of
    the prompts, by prompt_id.
    Raises ValueError for a prompt of too many tokens, and as `check_images` does; logs its warning.
    """
    if warning := check_images(generator, prompts):
        logger.warning(warning)
    size = generator.size
    negative_prompt = generator.negative_prompt if negative_prompt is None else negative_prompt
    images = {} if generator.image == "none" else first_frames(prompts, size.height, size.width)
    inputs = {prompt.prompt_id: texts[prompt.prompt_id] if texts else prompt.prompt for prompt in prompts}
    captions = [*inputs.values(), "", *([negative_prompt] if negative_prompt else [])]
    seen = None
    if generator.text_sees_image and images:
        black = np.zeros((size.height, size.width, 3), np.uint8)
        shown = [*images.values(), *[black] * (len(captions) - len(images))]
        seen = torch.from_numpy(np.stack(shown))
    rows = _rows(generator.encode_text(captions, seen), len(captions))
    conditions = dict(zip(inputs, rows, strict=False))
    for prompt_id, image in images.items():  # one by one: with frames after it, each takes the memory of a clip
        conditions[prompt_id] |= _rows(generator.encode_image(torch.from_numpy(image[None])), 1)[0]
    process = generator.process
    shift = process.shift if isinstance(process, FlowMatching) else None
    facts = {"family": generator.family, "shift": shift, "negative_prompt": negative_prompt}
    if generator.embedded_guidance is not None:
        facts["embedded_guidance"] = generator.embedded_guidance
    if generator.unconditional is not None:
        facts["unconditional"] = BASE
    if generator.projects:
        facts["unconditional_scale"] = PROJECTED
    negative = rows[-1] if negative_prompt else None
    return Encoded(PromptConditions(conditions, rows[len(conditions)], negative), images, facts)


def check_images(generator: Generator, prompts: Sequence[Prompt]) -> str | None:
    """Raises ValueError where the generator needs first frames and the prompts lack them; else what to warn of."""
    name, given = generator.checkpoint.path, any(prompt.image for prompt in prompts)
    if generator.image == "needed" and not given:
        raise ValueError(
            f"{name} makes a clip from a prompt and its first frame, and the prompts have none: give the prompt set a "
            "column image"
        )
    if generator.image == "none" and given:
        return f"{name} takes no first frame, so the images of the prompts are not used"
    return None


def _rows(conditions: Conditions, count: int) -> list[Conditions]:
    """The conditions of each row, without a batch axis."""
    return [{name: tensor[place].clone() for name, tensor in conditions.items()} for place in range(count)]
