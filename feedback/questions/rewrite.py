"""Prompts rewritten by a language model behind an OpenAI-compatible URL.

Each is paid for once: calls use the judges' ledger and retries (feedback/network/calls.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.prompts import PLACE, Prompt
from feedback.network.calls import ApiOptions
from feedback.questions.text_model import ApiText, ChatText
from feedback.questions.texts import TextRequest

INSTRUCTIONS = """Rewrite this prompt of a text-to-video model so that the model can follow it better: {prompt}

Say in one paragraph of at most 80 words what is seen: every object, the action from its beginning to its end, the
background, the light and the camera. Keep every object, direction and action of the prompt, and add no other action.
Reply with the rewritten prompt alone."""
TASK = "rewrite"


@dataclass(frozen=True)
class Rewriter:
    """The model that rewrites, and its instructions. Raises ValueError for instructions without {prompt}."""

    model: str
    base_url: str | None  # None: OpenAI's
    key_variable: str | None  # environment variable that holds the key; None: the server requires none
    instructions: str
    concurrency: int  # calls in flight

    def __post_init__(self) -> None:
        if PLACE not in self.instructions:
            raise ValueError(f"the instructions have no {PLACE} in them, so the model would not see the prompt")


def rewrite(prompts: Sequence[Prompt], by: Rewriter) -> list[Prompt]:
    """The prompts with the model's texts, in their order, each on one line.

    Replies are stored, also where other prompts fail. Raises LabelError where no call can succeed (a wrong key),
    ValueError naming the prompts that were refused or had no reply.
    """
    options = ApiOptions(model=by.model, rubric="", concurrency=by.concurrency)
    model = ApiText(by.model, ChatText(by.base_url, by.model, by.key_variable, {}, options.timeout), options)
    replies = model.replies([TextRequest(by.instructions.replace(PLACE, prompt.prompt)) for prompt in prompts], TASK)
    texts = [" ".join((reply.text or "").split()) for reply in replies]
    problems = [f"{p.prompt_id} ({reply.error})" for p, reply in zip(prompts, replies, strict=True) if reply.error]
    if problems:
        raise ValueError(f"{len(problems)} of {len(prompts)} prompts were not rewritten: {'; '.join(problems[:3])}")
    return [replace(prompt, prompt=text) for prompt, text in zip(prompts, texts, strict=True)]
