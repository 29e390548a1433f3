"""What a policy's folder says of how its updates were sampled."""

import json

from data.policies import HEATMAPS, LOG_FILE, copy_policy, sampled_otherwise, sampled_with

TRAINED = {
    "shift": 5.0,
    "steps": 25,
    "inference_steps": 30,
    "guidance": 5.0,
    "solver": "euler",
    "negative_prompt": None,
}


def test_sampling_is_compared_with_that_of_the_updates():
    """Steps may be those of an update or of a full sample; the shift is the policy's own and not compared."""
    for steps, guidance, negative, words in (
        (25, 5.0, None, ""),
        (30, 5.0, None, ""),
        (8, 5.0, None, "8 steps (in training 25 or 30)"),
        (25, 1.5, None, "guidance 1.5 (in training 5)"),
        (8, 1.0, "blurred", "guidance 1 (in training 5), 8 steps (in training 25 or 30)"),
        (30, 5.0, "blurred", "negative prompt 'blurred' (in training of the pipeline)"),
    ):
        assert sampled_otherwise(TRAINED, steps, guidance, negative) == words, words


def test_guidance_within_the_range_of_training_is_that_of_training():
    drawn = TRAINED | {"guidance": [1.0, 2.0]}
    for guidance, words in ((1.0, ""), (1.5, ""), (2.0, ""), (2.5, "guidance 2.5 (in training 1 to 2)")):
        assert sampled_otherwise(drawn, 25, guidance, TRAINED["negative_prompt"]) == words, guidance


def test_without_guidance_a_negative_prompt_makes_no_difference():
    assert sampled_otherwise(TRAINED | {"guidance": 1.0}, 25, 1.0, "blurred") == ""


def test_a_policy_that_does_not_say_how_is_not_compared(tmp_path):
    assert sampled_with(tmp_path) == {}
    for facts, found in (({}, {}), ({"sampling": {"shift": 5.0}}, {"shift": 5.0}), ({"sampling": TRAINED}, TRAINED)):
        (tmp_path / "policy.json").write_text(json.dumps(facts))
        assert sampled_with(tmp_path) == found
    assert sampled_otherwise({"shift": 5.0}, 1, 9.0, "blurred") == sampled_otherwise({}, 1, 9.0, None) == ""


def test_a_copy_of_a_policy_has_no_pictures_and_no_log_of_its_run(tmp_path):
    folder = tmp_path / "ask1"
    (folder / HEATMAPS).mkdir(parents=True)
    for name in ("policy.json", LOG_FILE, f"{HEATMAPS}/step-000000.png"):
        (folder / name).write_text("{}")
    copy_policy(folder, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").rglob("*")] == ["policy.json"]
