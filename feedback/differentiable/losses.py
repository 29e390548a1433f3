"""The generator's loss by a frozen judge's logits: one function a recipe, pure, of one question's logits.

In all of them, with letters T for the tokens of the wanted answer and V for the vocabulary:

    logits: (T, V), row t at the position that predicts token t of the answer: the first at the last token of the
        question, the others teacher-forced. Computed in float32, whatever the judge's own type.
    targets: (T,) ids of those tokens; targets[0] is the wanted word's first.
    other: id of the first token of the opposing word.

Each returns a scalar, less when the wanted answer is likelier.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

Loss = Callable[[Tensor, Tensor, int], Tensor]


class QuestionLosses(NamedTuple):
    """A judge's answers to N questions about one clip, in the form that rl.online.judging expects."""

    questions: tuple[str, ...]  # their names
    loss: Tensor  # (N,) of the wanted answers, or minus a metric's score, with gradient
    p_wanted: Tensor  # (N,) the wanted word's share of the two answer words, detached; NaN where a metric has none


def logprob(logits: Tensor, targets: Tensor, other: int) -> Tensor:
    """-log p(first token), over the whole vocabulary, in nats. Ask-A-Video §3.1 for an answer of one token; DRF Eq. 1.

    DRF's "logits y over Yes and No" may also be read as `logprob_two_way`.
    """
    return cross_entropy(logits[:1].float(), targets[:1], reduction="sum")


def logprob_two_way(logits: Tensor, targets: Tensor, other: int) -> Tensor:
    """-log of the wanted word's share of the two answer words, in nats: DRF Eq. 1, read as over Yes and No alone.

    Log 2 where both are as likely. No gradient pushes the two words' common probability up.
    """
    return softplus(-margin(logits, targets, other))


def logit(logits: Tensor, targets: Tensor, other: int) -> Tensor:
    """Minus the raw logit of the first token: Ask-A-Video §4.1, "the logit of the first answer token".

    Not in nats, and without bound: raising every logit alike lowers it, though no probability changes.
    """
    return -logits[0, targets[0]].float()


def logit_difference(logits: Tensor, targets: Tensor, other: int) -> Tensor:
    """-(logit of the wanted word's first token - the other's), the log-odds in nats: DRF Fig. 3, "logit difference".

    Without bound: unlike `logprob_two_way`, its gradient does not fade when the answer is certain.
    """
    return -margin(logits, targets, other)


def sequence(logits: Tensor, targets: Tensor, other: int) -> Tensor:
    """-sum over answer and explanation of log p(token | tokens before it), in nats. DRF Eq. 3; Ask-A-Video §3.1.

    The sum, as both print it: a longer explanation weighs more. Eq. 3 also sums over the questions, which the caller
    does. The token that ends the judge's turn is not among the targets; neither paper says.
    """
    return cross_entropy(logits.float(), targets, reduction="sum")


def margin(logits: Tensor, targets: Tensor, other: int) -> Tensor:
    """Log-odds of the wanted word against the other, by their first tokens; scalar, in nats."""
    return (logits[0, targets[0]] - logits[0, other]).float()


def p_wanted(logits: Tensor, targets: Tensor, other: int) -> Tensor:
    """The wanted word's share of the two answer words, detached: what is reported of a question for every loss."""
    return margin(logits.detach(), targets, other).sigmoid()


LOSSES: dict[str, Loss] = {
    "logprob": logprob,
    "logprob_two_way": logprob_two_way,
    "logit": logit,
    "logit_difference": logit_difference,
    "sequence": sequence,
}
TEACHER_FORCED = ("sequence",)  # read every token of answer and explanation; the others the first alone
