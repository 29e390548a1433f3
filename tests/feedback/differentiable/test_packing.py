import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from feedback.differentiable.packing import pack, packed_logits, prepare, recompute
from feedback.judges.vlm import Loaded, build_inputs, load_model, positions_of
from tests.support.judges import FAMILIES, SIZE

TIMES = [7 / 8 * index for index in (0, 1, 2, 3, 5, 6, 7, 8)]  # of 8 of 9 frames, in units of 1 / 7 second
PIXELS = ("pixel_values", "pixel_values_videos")
QUESTIONS = (
    "judge the video pushing red ball Accept or Reject",
    "judge the video pushing red table Accept or Reject",
    "Accept or Reject",
    "lifting the ball off the table or the video",
)


@pytest.fixture(scope="module")
def judges(tmp_path_factory) -> dict[str, Loaded]:
    return {family: load(build(tmp_path_factory.mktemp("judge"))) for family, build in FAMILIES.items()}


def load(folder: Path) -> Loaded:
    return load_model("judge", str(folder), None, "float32", None, "cpu")


@pytest.fixture(params=FAMILIES)
def judge(request, judges) -> Loaded:
    return judges[request.param]


def tokens(text: str) -> Tensor:
    return torch.tensor([ord(letter) for letter in text])


def counted(*texts: str) -> list[Tensor]:
    return [torch.arange(len(text))[None] for text in texts]


def letters(ids: Tensor) -> str:
    return "".join(map(chr, ids[0].tolist()))


def test_what_two_sequences_begin_with_is_there_once():
    packed = pack([tokens("abcd"), tokens("abef")], counted("abcd", "abef"))
    assert letters(packed.input_ids) == "abcdef"
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2, 3]]
    assert [path.tolist() for path in packed.paths] == [[0, 1, 2, 3], [0, 1, 4, 5]]
    # e sees a, b and itself; f sees e too; neither sees c or d. a to d are causal and need no rows.
    assert packed.mask.int().tolist() == [[[[1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 1, 1]]]]


def test_a_branch_can_branch_again_and_the_longest_sequence_lies_first():
    texts = ("abxy", "abcde", "abxz", "ab")
    packed = pack([tokens(text) for text in texts], counted(*texts))
    assert letters(packed.input_ids) == "abcdexyz"
    assert [path.tolist() for path in packed.paths] == [[0, 1, 5, 6], [0, 1, 2, 3, 4], [0, 1, 5, 7], [0, 1]]
    seen = [[letter for letter, bit in zip("abcdexyz", row, strict=True) if bit] for row in packed.mask[0, 0].tolist()]
    assert seen == [["a", "b", "x"], ["a", "b", "x", "y"], ["a", "b", "x", "z"]]


def test_equal_tokens_at_other_positions_are_not_shared():
    packed = pack([tokens("abc"), tokens("abc")], [torch.tensor([[0, 1, 2]]), torch.tensor([[0, 5, 6]])])
    assert letters(packed.input_ids) == "abcbc"
    assert packed.position_ids.tolist() == [[0, 1, 2, 5, 6]]


def test_sequences_that_share_nothing_see_nothing_of_each_other():
    packed = pack([tokens("ab"), tokens("cd")], counted("ab", "cd"))
    assert packed.mask.int().tolist() == [[[[0, 0, 1, 0], [0, 0, 1, 1]]]]


def test_one_sequence_alone_needs_no_mask():
    packed = pack([tokens("abc")], [torch.arange(9).view(3, 3)])
    assert packed.mask.shape == (1, 1, 0, 3)
    assert packed.position_ids.shape == (3, 1, 3)


def clip(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)


def inputs_of(judge: Loaded, text: str, clips: int = 1) -> dict:
    shown = [clip(seed) for seed in range(clips)]
    return dict(build_inputs(judge.processor, shown, [text], [7.0] * clips, None, [TIMES] * clips))


def shown(inputs: dict) -> tuple[str, Tensor]:
    """The pixels among a model's inputs, as a leaf."""
    (key,) = (key for key in inputs if key in PIXELS)
    return key, inputs[key].clone().requires_grad_()


def packed_answers(judge: Loaded, asked: list[dict]) -> tuple[list[Tensor], Tensor]:
    """Logits at the last two tokens of each question, of one packed pass, and their pixels' gradient."""
    most = max(asked, key=lambda inputs: inputs["input_ids"].shape[1])
    key, pixels = shown(most)
    packed = pack([inputs["input_ids"][0] for inputs in asked], [positions_of(judge.model, one) for one in asked])
    grid = {name: most[name] for name in ("video_grid_thw",) if name in most}
    last = [torch.arange(len(path) - 2, len(path)) for path in packed.paths]
    logits = packed_logits(judge.model, packed, {key: pixels} | grid, last)
    return [one.detach() for one in logits], torch.autograd.grad(loss_of(logits), pixels)[0]


def separate_answers(judge: Loaded, asked: list[dict]) -> tuple[list[Tensor], Tensor]:
    """The same of a pass for each question; the gradients are added up where the pixels are the same."""
    logits, gradients = [], []
    for index, inputs in enumerate(asked):
        key, pixels = shown(inputs)
        logits.append(judge.model(**inputs | {key: pixels}).logits[0, -2:])
        gradients.append(torch.autograd.grad(loss_of(logits[-1:], index), pixels)[0])
    whole = torch.zeros_like(max(gradients, key=len))
    for gradient in gradients:
        whole[: len(gradient)] += gradient
    return [one.detach() for one in logits], whole


def loss_of(logits: list[Tensor], start: int = 0) -> Tensor:
    """One that weighs every logit of every question differently."""
    weighed = [torch.linspace(index + 1, -1, one.numel()).view_as(one) for index, one in enumerate(logits, start)]
    return sum((one.log_softmax(-1) * weights).sum() for one, weights in zip(logits, weighed, strict=True))


def assert_same(judge: Loaded, asked: list[dict]) -> None:
    expected, expected_gradient = separate_answers(judge, asked)
    got, gradient = packed_answers(judge, asked)
    assert max(float((one - other).abs().max()) for one, other in zip(got, expected, strict=True)) < 1e-4
    assert float((gradient - expected_gradient).abs().max()) < 1e-4 * float(expected_gradient.abs().max())
    assert float(expected_gradient.abs().max()) > 0
    assert float((expected[0] - expected[1]).abs().max()) > 1e-2  # or being the same would mean nothing


def test_packed_questions_are_answered_as_each_alone_and_so_is_their_gradient(judge):
    prepare(judge.model)
    assert_same(judge, [inputs_of(judge, text) for text in QUESTIONS])


def test_questions_about_one_clip_and_about_two_fit_into_one_pack(judge):
    prepare(judge.model)
    asked = [inputs_of(judge, text, clips) for text, clips in zip(QUESTIONS, (1, 2, 1, 2), strict=True)]
    assert_same(judge, asked)
    packed = pack([one["input_ids"][0] for one in asked], [positions_of(judge.model, one) for one in asked])
    pads = sum(int((one["input_ids"] == packed.input_ids[0].mode().values).sum()) for one in asked)
    held = int((packed.input_ids == packed.input_ids[0].mode().values).sum())
    assert held * 3 == pads  # 1 + 2 + 1 + 2 clips in separate sequences, 2 in the pack


def test_a_prepared_judge_answers_an_ordinary_pass_as_before(judge):
    inputs = inputs_of(judge, QUESTIONS[0])
    padded = build_inputs(judge.processor, [clip(0)] * 2, list(QUESTIONS[1:3]), [7.0] * 2, None, [TIMES] * 2)
    plain = copy.deepcopy(judge.model)
    plain.set_attn_implementation("sdpa")
    prepare(judge.model)
    for one in (inputs, padded):
        assert torch.equal(plain(**one).logits, judge.model(**one).logits)


def test_logits_are_computed_for_the_answers_alone(judge):
    prepare(judge.model)
    rows: list[int] = []
    watch = judge.model.lm_head.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[1]))
    try:
        packed_answers(judge, [inputs_of(judge, text) for text in QUESTIONS])
    finally:
        watch.remove()
    assert rows == [2 * len(QUESTIONS)]


def test_a_judge_that_attends_in_sliding_windows_is_an_error(judges):
    model = copy.deepcopy(judges["qwen2.5"].model)
    model.config.text_config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="sliding windows"):
        prepare(model)


def kept_and_gradient(judge: Loaded, asked: list[dict]) -> tuple[int, Tensor]:
    """Bytes that autograd keeps for the backward, weights apart, and the pixels' gradient."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in judge.model.parameters()}
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _, gradient = packed_answers(judge, asked)
    return sum(held.values()), gradient


def test_recomputing_keeps_fewer_bytes_and_gives_the_same_gradient(judge):
    frozen = Loaded(copy.deepcopy(judge.model).requires_grad_(False), judge.processor, "")
    prepare(frozen.model)
    asked = [inputs_of(frozen, text) for text in QUESTIONS]
    kept, gradient = kept_and_gradient(frozen, asked)
    recompute(frozen.model)
    kept_less, same = kept_and_gradient(frozen, asked)
    assert torch.equal(gradient, same)
    assert kept_less < 0.5 * kept
    assert not any(type(m).__name__ == "Dropout" and m.training for m in frozen.model.modules())
