import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.records import Sample
from data.video import read_video, sample_frames, write_video
from feedback.core.kinds import make_source
from feedback.core.rubric import load_rubric
from feedback.core.source import Request
from feedback.differentiable.asks import Ask, asks_of_rubric
from feedback.differentiable.augment import Augmentation
from feedback.differentiable.losses import LOSSES
from feedback.differentiable.overlay import Overlay, parse_mark
from feedback.differentiable.overlay import render as drawn
from feedback.differentiable.targets import find_target
from feedback.differentiable.vlm import ClipShape, VlmJudge, load_judge
from feedback.judges.vlm import Loaded, build_inputs
from tabletop.captions import all_claims, caption
from tabletop.render import render
from tabletop.scenes import make_scene
from tests.support.judges import FAMILIES, SIZE
from tests.support.refusals import assert_refused

SHIPPED = {
    "kind": "qwen", "path": "models/tabletop/judge", "revision": None, "rubric": "tabletop/rubric.yaml",
    "batch_size": 4, "dtype": "float32",
}  # fmt: skip
NINE = ClipShape(num_frames=9, fps=8.0)


def ask(name: str, text: str, wanted: str = "Accept", **changes) -> Ask:
    other = "Reject" if wanted == "Accept" else "Accept"
    return replace(Ask(name, "own", text, wanted, other, None, False, "me"), **changes)


ASKS = (
    ask("first", "judge the video pushing red ball Accept or Reject"),
    ask("second", "judge the video pushing red table", "Reject"),
    ask("third", "lifting the ball off the table", explanation="the red ball"),
)
COMPARED = ask("compared", "judge the video or the video", with_reference=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Loaded]:
    return {
        family: load_judge("judge", SHIPPED | {"path": str(build(tmp_path_factory.mktemp("judge")))}, "cpu")
        for family, build in FAMILIES.items()
    }


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def make(models, family):
    """Makes a judge of this family, all of them on one model."""

    def made(asks=ASKS, loss="logprob", **changes) -> VlmJudge:
        settings = {"frames": 8, "clip": NINE} | changes
        return VlmJudge("judge", models[family].model, models[family].processor, {"p": asks}, loss, **settings)

    return made


@pytest.fixture
def make_qwen(models):
    def made(asks=None, loss="logprob", **changes) -> VlmJudge:
        settings = {"frames": 8, "clip": NINE} | changes
        given = {"p": ASKS} if asks is None else asks
        return VlmJudge("judge", models["qwen2.5"].model, models["qwen2.5"].processor, given, loss, **settings)

    return made


def frames(seed: int = 0, count: int = 8) -> torch.Tensor:
    return torch.rand(count, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gradient(judge: VlmJudge, shown: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(judge(shown, "p", 0).loss.sum(), shown)
    return found


# Against the offline judge


@pytest.fixture(scope="module")
def rendered() -> list[tuple[str, np.ndarray]]:
    """Captions and clips of the tabletop, fulfilled and not."""
    claims = all_claims()
    picked = [claims[place] for place in range(0, len(claims), len(claims) // 6)]
    botches = [None, "static", None, "vanish", None, "static", None]
    rng = np.random.default_rng(0)
    return [
        (caption(claim), render(make_scene(claim, rng, botch))) for claim, botch in zip(picked, botches, strict=False)
    ]


def offline_p(rendered, tmp_path: Path) -> list[float]:
    """What the source says of the very frames, each encoded, decoded and judged."""
    source = make_source("judge", SHIPPED | {"min_answer_mass": 0.0})
    requests = []
    for index, (prompt, clip) in enumerate(rendered):
        path = tmp_path / f"{index}.mp4"
        write_video(path, clip, 8.0)
        facts = ("c", "train", "base", index, len(clip), 8.0, *clip.shape[1:3], path.name)
        requests.append(Request(Sample(str(index), "p", prompt, *facts), path))
    found = {verdict.sample_id: verdict.p_yes for (verdict,) in source.judge(iter(requests))}
    return [found[str(index)] for index in range(len(rendered))]


def test_p_is_that_of_the_offline_judge_on_the_same_frames(rendered, tmp_path):
    offline = offline_p(rendered, tmp_path)
    rubric = load_rubric(Path(SHIPPED["rubric"]))
    asks = {str(index): asks_of_rubric(rubric, prompt) for index, (prompt, _) in enumerate(rendered)}
    loaded = load_judge("judge", SHIPPED, "cpu")
    judge = VlmJudge("judge", loaded.model, loaded.processor, asks, "logprob_two_way", rubric.frames, NINE)
    assert judge.frame_indices(9, 0) == sample_frames(9, rubric.frames)
    for index, expected in enumerate(offline):
        seen = torch.from_numpy(read_video(tmp_path / f"{index}.mp4"))[judge.frame_indices(9, 0)].float() / 255
        answers = judge(seen, str(index), 0)
        assert answers.questions == ("accept",)
        assert float(answers.p_wanted) == pytest.approx(expected, abs=1e-5)
        assert float(answers.loss) == pytest.approx(-math.log(expected), abs=1e-4)
    assert max(offline) - min(offline) > 0.3  # or they would be equal for nothing


def test_a_first_frame_is_shown_as_the_offline_judge_shows_it(models, family):
    """Its inputs are those of feedback.judges.vlm, in a forward of one unpacked question."""
    model, processor, _ = models[family]
    clip = (frames(count=9).detach() * 255).byte().numpy()
    firsts = {"black": np.zeros((SIZE, SIZE, 3), np.uint8), "clip": clip[0]}
    asks = dict.fromkeys(firsts, [replace(one, with_first_frame=True, explanation=None) for one in ASKS[:2]])
    judge = VlmJudge("judge", model, processor, asks, "logprob", 8, NINE, firsts=firsts)
    indices = judge.frame_indices(9, 0)
    rate, found = 7 / 8 * 8.0, []
    times = [[index * 7 / 8 for index in indices]]
    for name, picture in firsts.items():
        answers = judge(torch.from_numpy(clip[indices]).float() / 255, name, 0)
        for one, loss in zip(asks[name], answers.loss, strict=True):
            inputs = build_inputs(processor, [clip[indices]], [one.text], [rate], None, times, [picture])
            with torch.no_grad():
                logs = model(**inputs).logits[0, -1].log_softmax(-1)
            (token,) = find_target(processor, one, whole=False).tokens
            assert loss.item() == pytest.approx(-logs[token].item(), abs=1e-4)
        found.append(answers.loss)
    assert (found[0] - found[1]).abs().min() > 1e-4  # it looks at the picture


def test_a_first_frame_that_is_missing_or_shown_to_some_questions_alone_is_an_error(make_qwen):
    shown = ask("shown", ASKS[0].text, with_first_frame=True)
    with pytest.raises(ValueError, match="the questions about p show its first frame, and it has none"):
        make_qwen({"p": (shown,)})
    with pytest.raises(ValueError, match="of the questions about p some show the first frame, not all"):
        make_qwen({"p": (shown, ASKS[1])}, firsts={"p": np.zeros((SIZE, SIZE, 3), np.uint8)})


# The judge itself


def test_questions_together_are_answered_as_each_alone(make):
    together = make()(frames(), "p", 0)
    alone = [make((one,))(frames(), "p", 0) for one in ASKS]
    assert together.questions == ("first", "second", "third")
    assert together.loss.tolist() == pytest.approx([one.loss.item() for one in alone], abs=1e-4)
    assert together.p_wanted.tolist() == pytest.approx([float(one.p_wanted) for one in alone], abs=1e-5)


def test_an_explanation_counts_in_sequence_and_nowhere_else(make):
    bare = tuple(replace(one, explanation=None) for one in ASKS)
    found = {loss: [make(asks, loss)(frames(), "p", 0).loss.tolist() for asks in (ASKS, bare)] for loss in LOSSES}
    for loss, (explained, brief) in found.items():
        assert explained[:2] == pytest.approx(brief[:2], abs=1e-4), loss
        assert (explained[2] > brief[2] + 1) == (loss == "sequence"), loss
    assert found["sequence"][1] == pytest.approx(found["logprob"][1], abs=1e-4)  # an answer of one token is its logprob


def test_sequence_is_teacher_forced(make_qwen, models):
    """Every token of answer and explanation, each after those before it, in an ordinary pass of the same model."""
    seen = (frames().detach() * 255).byte()
    loaded, times = models["qwen2.5"], [7 / 8 * index for index in sample_frames(9, 8)]
    inputs = dict(build_inputs(loaded.processor, [seen.numpy()], [ASKS[2].text], [7.0], None, [times]))
    reply = loaded.processor.tokenizer.convert_tokens_to_ids(["Accept", "the", "red", "ball"])
    for key, more in (("input_ids", reply), ("mm_token_type_ids", [0] * 4), ("attention_mask", [1] * 4)):
        inputs[key] = torch.cat([inputs[key], torch.tensor([more])], 1)
    with torch.no_grad():
        logs = loaded.model(**inputs).logits[0].double().log_softmax(-1)
    expected = -sum(float(logs[place, token]) for place, token in zip(range(-5, -1), reply, strict=True))
    found = make_qwen(loss="sequence")(seen.float() / 255, "p", 0)
    assert found.loss[2].item() == pytest.approx(expected, abs=1e-4)


def test_the_gradient_reaches_the_frames_and_lowers_the_loss(make):
    judge, shown = make(), frames()
    slope = gradient(judge, shown)
    assert slope.shape == shown.shape
    assert bool((slope.flatten(1).abs().sum(1) > 0).all())  # of every frame
    with torch.no_grad():
        step = 1e-3 / slope.norm()
        before, after = (float(judge(one, "p", 0).loss.sum()) for one in (shown, shown - step * slope))
    assert after < before
    # to first order by the step times the squared norm
    assert before - after == pytest.approx(float(step * slope.square().sum()), rel=0.1)


def test_no_weight_of_the_judge_gets_a_gradient(make, models, family):
    make()(frames(), "p", 0).loss.sum().backward()
    assert all(parameter.grad is None for parameter in models[family].model.parameters())


def test_a_reference_is_shown_after_the_clip_to_those_questions_that_want_one(make):
    reference = {"p": frames(1).detach()}
    judge = make((*ASKS, COMPARED), references=reference)
    found = judge(frames(), "p", 0)
    assert found.loss[:3].tolist() == pytest.approx(make()(frames(), "p", 0).loss.tolist(), abs=1e-4)
    other = make((*ASKS, COMPARED), references={"p": frames(2).detach()})(frames(), "p", 0)
    assert other.loss[:3].tolist() == pytest.approx(found.loss[:3].tolist(), abs=1e-4)
    assert abs((other.loss[3] - found.loss[3]).item()) > 1e-4
    alone = make((COMPARED,), references=reference)(frames(), "p", 0)
    assert alone.loss.tolist() == pytest.approx(found.loss[3:].tolist(), abs=1e-4)
    swapped = make((COMPARED,), references={"p": frames().detach()})(frames(1), "p", 0)
    assert abs((swapped.loss - alone.loss).item()) > 1e-4


def test_checkpointing_changes_no_answer_and_no_gradient(tmp_path, family):
    loaded = load_judge("judge", SHIPPED | {"path": str(FAMILIES[family](tmp_path))}, "cpu")
    settings = {"loss": "sequence", "frames": 8, "clip": NINE}
    plain = gradient(VlmJudge("judge", loaded.model, loaded.processor, {"p": ASKS}, **settings), shown := frames())
    again = VlmJudge("judge", loaded.model, loaded.processor, {"p": ASKS}, **settings, checkpointing=True)
    assert torch.equal(gradient(again, shown), plain)


def test_frames_of_another_size_are_scaled_and_asked_about_again(make):
    judge = make()
    small = judge(frames(), "p", 0).loss
    large = frames().detach().repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert judge(large, "p", 0).loss.shape == small.shape
    assert judge(frames(), "p", 0).loss.tolist() == small.tolist()


# What it is shown


def test_the_frames_shown_are_evenly_spaced_and_jitter_as_the_augmentation_says(make_qwen):
    assert make_qwen(frames=4).frame_indices(9, 7) == sample_frames(9, 4)
    augmentation = Augmentation(jitter=1)
    judge = make_qwen(frames=4, augment=augmentation)
    assert [judge.frame_indices(9, seed) for seed in range(5)] == [
        augmentation.frame_indices(9, 4, seed) for seed in range(5)
    ]


def test_augmentation_is_addressed_by_its_seed(make_qwen):
    judge = make_qwen(augment=Augmentation(crop=0.2, noise=0.05))
    found = [judge(frames(), "p", seed).loss.tolist() for seed in (1, 2, 1)]
    assert found[0] == found[2] != found[1]


def test_an_overlay_lies_on_its_own_frames_of_the_clip(make_qwen):
    overlay = drawn(Overlay((parse_mark("box", "8,8,40,40@8"),)), 9, SIZE, SIZE)
    shown = frames(count=4)
    slope = gradient(make_qwen(frames=4, overlay=overlay), shown)
    inside = slope[:, 8, 8:40]  # the box's upper line, one pixel wide
    assert (inside.flatten(1).abs().sum(1) == 0).tolist() == [False, False, False, True]
    marked, plain = (make_qwen(frames=4, overlay=one)(shown, "p", 0).loss.tolist() for one in (overlay, None))
    assert marked != plain


# Bad input


def test_a_loss_that_is_not_a_number_leaves_the_other_answers_be(make_qwen, models):
    loaded = models["qwen2.5"]
    head = loaded.model.lm_head.weight
    ball = loaded.processor.tokenizer.get_vocab()["Reject"]
    kept = head.data[ball].clone()
    try:
        head.data[ball] = math.nan
        answers = make_qwen(loss="logit")(frames(), "p", 0)
    finally:
        head.data[ball] = kept
    assert answers.loss.isnan().tolist() == [False, True, False]
    assert answers.questions == ("first", "second", "third")


def test_what_cannot_be_asked_is_an_error(make_qwen):
    cases = (
        ({"loss": "mse"}, "judge judge: loss is 'mse', known are .*'logprob'"),
        ({"frames": 10}, "judge judge: frames is 10, expected 1 to 9"),
        ({"frames": 0}, "judge judge: frames is 0, expected 1 to 9"),
        ({"asks": {}}, "judge judge: no questions"),
        ({"asks": {"p": ()}}, "judge judge: no questions about p"),
        ({"asks": {"p": (COMPARED,)}}, "a question about p compares with a reference, and it has none"),
        ({"asks": {"p": (replace(ASKS[0], wanted="Yes"),)}}, "'Yes' is a wanted answer .* would not produce"),
    )
    assert_refused(lambda changes: make_qwen(**changes), cases)


def test_a_reference_of_another_length_is_an_error(make_qwen):
    with pytest.raises(ValueError, match="the reference of p has 5 frames, expected as many as the judge sees .* 8"):
        make_qwen({"p": (COMPARED,)}, references={"p": frames(count=5).detach()})


def test_clips_of_another_length_and_prompts_without_questions_are_errors(make_qwen):
    judge = make_qwen()
    with pytest.raises(ValueError, match="a clip of 17 frames, expected 9"):
        judge.frame_indices(17, 0)
    with pytest.raises(ValueError, match="no questions about q"):
        judge(frames(), "q", 0)


def test_a_source_without_gradient_is_an_error_that_names_those_with_one():
    kinds = ("gpt", "gemini", "served", "human", "physics", "panel", "clip")
    message = "feedback.sources.mine is of kind {}, .*weights are in this process, kind qwen.*clip, pickscore, hpsv2"
    cases = [({"kind": kind}, message.format(kind)) for kind in kinds]
    assert_refused(lambda block: load_judge("mine", block, "cpu"), cases)


def test_a_block_that_is_wrong_is_named():
    with pytest.raises(ValueError, match="feedback.sources.mine.kind is 'gwen'"):
        load_judge("mine", {"kind": "gwen"}, "cpu")
    with pytest.raises(ValueError, match="feedback.sources.mine.path is missing"):
        load_judge("mine", {key: value for key, value in SHIPPED.items() if key != "path"}, "cpu")
