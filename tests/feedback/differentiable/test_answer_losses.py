import math

import pytest
import torch
from torch import Tensor

from feedback.differentiable.asks import Ask
from feedback.differentiable.losses import LOSSES, logit, logit_difference, logprob, logprob_two_way, p_wanted, sequence
from feedback.differentiable.targets import find_target
from feedback.judges.vlm import Loaded, load_model
from tests.support.judges import FAMILIES, WORDS, build_judge
from tests.support.refusals import assert_refused

TARGET, OTHER = torch.tensor([2]), 0
# exp of the logits is 1, 2, 5: of 8 in all, and the wanted word's is 5
LOGITS = torch.tensor([[0.0, math.log(2), math.log(5)]])


def test_logprob_is_of_the_whole_vocabulary():
    assert float(logprob(LOGITS, TARGET, OTHER)) == pytest.approx(-math.log(5 / 8))


def test_logprob_two_way_is_of_the_two_words_alone():
    assert float(logprob_two_way(LOGITS, TARGET, OTHER)) == pytest.approx(-math.log(5 / 6))


def test_logit_is_the_raw_one():
    assert float(logit(LOGITS, TARGET, OTHER)) == pytest.approx(-math.log(5))


def test_logit_difference_is_the_log_odds():
    assert float(logit_difference(LOGITS, TARGET, OTHER)) == pytest.approx(-math.log(5 / 1))


def test_p_wanted_is_the_share_of_both_words_and_has_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    assert float(p_wanted(logits, TARGET, OTHER)) == pytest.approx(5 / 6)
    assert not p_wanted(logits, TARGET, OTHER).requires_grad


def test_sequence_sums_over_every_token():
    # the first token 5 of 8, the second 2 of 3
    logits = torch.cat([LOGITS, torch.tensor([[math.log(2), 0.0, -math.inf]])])
    found = float(sequence(logits, torch.tensor([2, 0]), OTHER))
    assert found == pytest.approx(-math.log(5 / 8) - math.log(2 / 3))


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 11, generator=generator), torch.randint(1, 11, (4,), generator=generator)


def test_probabilities_do_not_change_when_every_logit_rises_alike():
    rise = torch.tensor([[3.0], [-2.0], [7.0], [0.5]])
    for seed in range(5):
        logits, targets = drawn(seed)
        for name in ("logprob", "logprob_two_way", "logit_difference", "sequence"):
            before, after = (float(LOSSES[name](one, targets, 0)) for one in (logits, logits + rise))
            assert after == pytest.approx(before, abs=1e-4), (name, seed)


def test_a_raw_logit_falls_for_that_which_is_why_it_is_no_probability():
    logits, targets = drawn(0)
    assert float(logit(logits + 3, targets, 0)) == pytest.approx(float(logit(logits, targets, 0)) - 3)


def test_every_loss_pulls_the_wanted_tokens_logit_up():
    logits, targets = drawn(1)
    logits.requires_grad_()
    for name, loss in LOSSES.items():
        (gradient,) = torch.autograd.grad(loss(logits, targets, 0), logits)
        assert gradient[0, targets[0]] < 0, name
        assert (gradient[1:].abs().max() > 0) == (name == "sequence"), name  # the others read the first token alone


def test_only_the_difference_keeps_pulling_when_the_answer_is_certain():
    certain = torch.tensor([[0.0, 0.0, 30.0]], requires_grad=True)
    pulls = {name: torch.autograd.grad(LOSSES[name](certain, TARGET, OTHER), certain)[0][0, 2] for name in LOSSES}
    assert pulls["logit_difference"] == pulls["logit"] == -1
    assert all(abs(pulls[name]) < 1e-9 for name in ("logprob", "logprob_two_way", "sequence"))


def test_half_precision_logits_are_read_in_single():
    logits, targets = drawn(2)
    for name, loss in LOSSES.items():
        assert loss(logits.bfloat16(), targets, 0).dtype == torch.float32, name


# The tokens of an answer


def ask(wanted: str = "Accept", other: str = "Reject", text: str = "judge the video", explanation=None) -> Ask:
    return Ask("drop", "own", text, wanted, other, explanation, False, "me")


@pytest.fixture(scope="module")
def judges(tmp_path_factory) -> dict[str, Loaded]:
    return {family: load(build(tmp_path_factory.mktemp("judge"))) for family, build in FAMILIES.items()}


def load(folder) -> Loaded:
    return load_model("judge", str(folder), None, "float32", None, "cpu")


@pytest.fixture
def processor(judges):
    return judges["qwen2.5"].processor


@pytest.mark.parametrize("family", FAMILIES)
def test_the_target_is_the_word_as_spelled_and_its_explanation_follows(judges, family):
    processor = judges[family].processor
    vocabulary = processor.tokenizer.get_vocab()
    question = ask("accept", "Reject", explanation="the red ball")
    assert find_target(processor, question, whole=False) == ([vocabulary["accept"]], vocabulary["Reject"])
    words = ("accept", "the", "red", "ball")
    assert find_target(processor, question, whole=True) == ([vocabulary[word] for word in words], vocabulary["Reject"])
    assert find_target(processor, ask("accept"), whole=True).tokens == [vocabulary["accept"]]


def test_an_answer_that_the_judge_would_not_give_is_an_error_that_names_it(processor):
    lacks = "would not produce: the vocabulary lacks"
    cases = (
        (ask(wanted="Yes"), rf"question drop: 'Yes' is a wanted answer that the chat template {lacks} \['Yes'\]"),
        (ask(other="No"), rf"question drop: 'No' is a wanted answer that the chat template {lacks} \['No'\]"),
        (ask("the ball", "the table"), "'the ball' is .* would not produce: it begins with the same token as 'the tab"),
        (ask(text="judge the vase"), r"question drop: the judge does not know the words \['vase'\]"),
        (ask(explanation="the red vase"), rf"{lacks} \['vase'\]"),
    )
    assert_refused(lambda question: find_target(processor, question, whole=True), cases)


def with_template(tmp_path, change) -> Loaded:
    folder = build_judge(tmp_path, [*WORDS, "assistant-Accept", "assistant-Reject"])
    template = folder / "chat_template.jinja"
    template.write_text(change(template.read_text()))
    return load(folder)


def test_a_template_without_generation_prompt_is_an_error(tmp_path):
    judge = with_template(tmp_path, lambda text: text[: text.index("{% if add_generation_prompt %}")])
    with pytest.raises(ValueError, match="'Accept' is .* would not produce: it has no generation prompt"):
        find_target(judge.processor, ask(), whole=False)


def test_an_answer_that_merges_with_the_template_is_an_error(tmp_path):
    judge = with_template(tmp_path, lambda text: text.replace("assistant\n", "assistant-"))
    with pytest.raises(ValueError, match="'Accept' is .* would not produce: it merges with the words before it"):
        find_target(judge.processor, ask(), whole=False)
