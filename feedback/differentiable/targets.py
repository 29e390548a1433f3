"""The tokens of a judge's wanted answer, at the beginning of the judge's turn."""

from functools import partial
from typing import Any, NamedTuple

from transformers import ProcessorMixin

from feedback.differentiable.asks import Ask
from feedback.judges.vlm import templated, unknown_words


class Target(NamedTuple):
    """A wanted answer in a judge's tokens."""

    tokens: list[int]  # of the wanted word: its first, or all of them and its explanation's
    other: int  # the opposing word's first


def find_target(processor: ProcessorMixin, ask: Ask, whole: bool) -> Target:
    """The tokens of the wanted answer directly after the chat template's generation prompt.

    whole: every token of the answer and of the explanation, if the question has one, which follows after a space
        unless it begins with punctuation; otherwise the first token of the answer alone.
    Raises ValueError where the judge cannot read the question or cannot begin its turn so: a template without a
    generation prompt, a word outside the vocabulary, an answer that merges with the text before it, or two answers
    that begin with the same token.
    """
    tokenizer = processor.tokenizer
    if unknown := unknown_words(tokenizer, ask.text):
        raise ValueError(f"question {ask.name}: the judge does not know the words {unknown}")
    ask_by = partial(templated, processor, ask.text, videos_of(ask), pictures=int(ask.with_first_frame))
    prompt = ask_by()
    if prompt == ask_by(answering=False):
        raise _unlike(ask, ask.wanted, "it has no generation prompt")
    reply = ask.wanted + (_continued(ask.explanation) if whole and ask.explanation else "")
    tokens, others = (_after(tokenizer, prompt, words, ask) for words in (reply, ask.other))
    if tokens[0] == others[0]:
        raise _unlike(ask, ask.wanted, f"it begins with the same token as {ask.other!r}")
    return Target(tokens if whole else tokens[:1], others[0])


def videos_of(ask: Ask) -> int:
    """How many clips a question is about: the generated one, and a reference after it for those that compare."""
    return 2 if ask.with_reference else 1


def _continued(explanation: str) -> str:
    return explanation if not explanation[0].isalnum() else f" {explanation}"


def _after(tokenizer: Any, prompt: str, words: str, ask: Ask) -> list[int]:
    """The tokens of these words after the prompt."""
    before = tokenizer.encode(prompt, add_special_tokens=False)
    whole = tokenizer.encode(prompt + words, add_special_tokens=False)
    if whole[: len(before)] != before or len(whole) == len(before):
        raise _unlike(ask, words, "it merges with the words before it")
    tokens: list[int] = whole[len(before) :]
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens:
        raise _unlike(ask, words, f"the vocabulary lacks {unknown_words(tokenizer, words)}")
    return tokens


def _unlike(ask: Ask, words: str, why: str) -> ValueError:
    problem = "is a wanted answer that the chat template would not produce"
    return ValueError(f"question {ask.name}: {words!r} {problem}: {why}")
