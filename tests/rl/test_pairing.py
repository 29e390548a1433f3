"""Claims about pairs and the tables that training reads."""

import math
from collections import Counter

import pytest

from data.records import Label, Pair, Preference, Sample, Weighted
from rl.datasets import build
from rl.pairing import STRATEGIES, RewardedClip, check_source, pair, pair_preferred


def clips(pattern: str, prompt_id: str = "p") -> list[RewardedClip]:
    """One clip a letter: a accepted, r rejected, ? unlabelled."""
    verdicts = {"a": (True, 1.0), "r": (False, 0.0), "?": (None, None)}
    return [RewardedClip(f"{prompt_id}-{i}", prompt_id, *verdicts[letter]) for i, letter in enumerate(pattern)]


def scored(*rewards: float | None) -> list[RewardedClip]:
    return [RewardedClip(f"s{i}", "p", None, reward) for i, reward in enumerate(rewards)]


def paired(found: list[RewardedClip], strategy: str, k: int = 8, min_margin: float = 0.0, seed: int = 0) -> list[Pair]:
    return pair(found, strategy, k, min_margin, seed).pairs


def test_all_pairs_by_hand():
    pairs = paired(clips("ara"), "all")
    assert pairs == [Pair("p", "p-0", "p-1", 1.0), Pair("p", "p-2", "p-1", 1.0)]


def test_unlabelled_clips_are_never_paired():
    for strategy in STRATEGIES:
        used = {clip for row in paired(clips("a?r?r"), strategy) for clip in (row.chosen, row.rejected)}
        assert used == {"p-0", "p-2", "p-4"}, strategy


def test_clips_of_different_prompts_are_never_paired():
    for strategy in STRATEGIES:
        pairing = pair(clips("aa", "p") + clips("rr", "q"), strategy, 8, 0.0, 0)
        assert pairing.pairs == [] and set(pairing.unpaired) == {"p", "q"}, strategy


def test_every_pair_is_new_and_prefers_its_chosen_clip():
    for strategy in STRATEGIES:
        found = clips("arraarrr?")
        pairs = paired(found, strategy, k=100)
        reward = {clip.sample_id: clip.reward for clip in found}
        assert len(set(pairs)) == len(pairs) == 3 * 5, strategy
        assert all(row.margin == reward[row.chosen] - reward[row.rejected] > 0 for row in pairs), strategy


def test_balanced_pairs_use_each_clip_as_evenly_as_can_be():
    for accepted, rejected, k in ((3, 5, 7), (4, 6, 20), (1, 9, 8), (6, 6, 36), (2, 2, 3), (5, 5, 1)):
        pairs = paired(clips("a" * accepted + "r" * rejected), "balanced", k)
        assert len(set(pairs)) == len(pairs) == min(k, accepted * rejected), (accepted, rejected, k)
        for count, side in ((accepted, "chosen"), (rejected, "rejected")):
            uses = Counter(getattr(row, side) for row in pairs)
            spread = [uses[name] for name in uses] + [0] * (count - len(uses))
            assert max(spread) - min(spread) <= 1, (accepted, rejected, k)


def test_balanced_pairs_follow_the_seed():
    found = clips("aaaarrrr")
    assert paired(found, "balanced", 4, seed=1) == paired(found, "balanced", 4, seed=1)
    assert paired(found, "balanced", 4, seed=1) != paired(found, "balanced", 4, seed=2)


def test_pairs_of_a_prompt_do_not_depend_on_other_prompts():
    alone = paired(clips("aaarrr", "q"), "balanced", 4)
    together = paired(clips("aarr", "p") + clips("aaarrr", "q"), "balanced", 4)
    assert [row for row in together if row.prompt_id == "q"] == alone


def test_margin_pairs_by_hand():
    """Rewards .9, .5, .1: gaps .8, .4, .4; the widest first, then by sample_id."""
    pairs = paired(scored(0.9, 0.5, 0.1), "margin")
    assert [(row.chosen, row.rejected) for row in pairs] == [("s0", "s2"), ("s0", "s1"), ("s1", "s2")]
    assert paired(scored(0.9, 0.5, 0.1), "margin", min_margin=0.5) == pairs[:1]
    assert paired(scored(0.9, 0.5, 0.1), "margin", k=2) == pairs[:2]


def test_ties_are_never_paired():
    assert paired(scored(0.5, 0.5, None), "margin") == []


def test_a_prompt_without_a_pair_is_reported_with_its_reason():
    for strategy, found, reason in (
        ("all", clips("aa?"), "all accepted"),
        ("balanced", clips("rr?"), "all rejected"),
        ("all", clips("??"), "all unlabelled"),
        ("margin", scored(None, None), "all unlabelled"),
        ("margin", scored(0.5, 0.6), "gaps under the minimum"),
        ("margin", scored(0.5, 0.5), "gaps under the minimum"),
        ("margin", scored(0.5), "gaps under the minimum"),
    ):
        assert pair(found, strategy, 8, 0.3 if strategy == "margin" else 0.0, 0).unpaired == {"p": reason}, (
            strategy,
            found,
            reason,
        )


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="'random' is unknown; known: all, balanced, margin, quantile"):
        pair([], "random", 8, 0.0, 0)
    with pytest.raises(ValueError, match="pairs_per_prompt must be >= 1, found 0"):
        pair([], "all", 0, 0.0, 0)
    with pytest.raises(ValueError, match=r"min_margin must be >= 0, found -0\.1"):
        pair([], "margin", 8, -0.1, 0)
    with pytest.raises(ValueError, match=r"quantile must be > 0 and at most 0\.5, found 0\.6"):
        pair([], "quantile", 8, 0.0, 0, 0.6)


def test_quantile_pairs_the_best_part_of_a_prompt_with_the_worst_whatever_the_labels():
    clips = scored(0.5, 9.0, -2.0, None, 8.0, 0.0, 1.0, -1.0, 0.4)  # the best quarter of 8 is s1, s4, the worst s7, s2
    pairs = pair(clips, "quantile", 8, 0.0, 0, 0.25).pairs
    assert {(one.chosen, one.rejected) for one in pairs} == {("s1", "s7"), ("s1", "s2"), ("s4", "s7"), ("s4", "s2")}
    assert {(one.chosen, one.rejected): one.margin for one in pairs}["s4", "s2"] == 10.0
    assert len(pair(clips, "quantile", 3, 0.0, 0, 0.25).pairs) == 3
    wide = pair(clips, "quantile", 8, 10.5, 0, 0.25).pairs  # 9 + 2 alone is as far apart
    assert [(one.chosen, one.rejected) for one in wide] == [("s1", "s2")]


def test_quantile_has_at_least_one_clip_on_each_side_and_never_pairs_a_tie():
    assert [(one.chosen, one.rejected) for one in pair(scored(1.0, 2.0, 1.5), "quantile", 8, 0.0, 0, 0.1).pairs] == [
        ("s1", "s0")
    ]
    assert pair(scored(1.0, 1.0), "quantile", 8, 0.0, 0).unpaired == {"p": "gaps under the minimum"}
    assert pair(scored(1.0), "quantile", 8, 0.0, 0).unpaired == {"p": "gaps under the minimum"}
    assert pair(scored(None, None), "quantile", 8, 0.0, 0).unpaired == {"p": "all unlabelled"}


# rl.datasets


def labelled(pattern: str, prompt_id: str = "p", category: str = "falling down") -> list[tuple[Sample, Label]]:
    """A sample and its label for each letter: a accepted, r rejected, ? unlabelled."""
    verdict = {"a": (True, 0.9), "r": (False, 0.2), "?": (None, None)}
    rows = []
    for index, letter in enumerate(pattern):
        name = f"{prompt_id}-{index}"
        accepted, p_accept = verdict[letter]
        file_name = f"videos/{name}.mp4"
        sample = Sample(name, prompt_id, "a cup falls", category, "train", "base", 1, 5, 8.0, 16, 16, file_name)
        rows.append((sample, Label(name, "judge", accepted, p_accept, None, 1, 0, None)))
    return rows


def built(rows: list[tuple[Sample, Label]], **changes):
    settings = {"reward": "label", "scale": 1.0, "shift": 0.0, "pairs": "balanced", "pairs_per_prompt": 8}
    settings |= {"min_margin": 0.0, "seed": 1, "name": "r1/judge", "shaping": "linear", "temperature": 1.0} | changes
    samples, labels = zip(*rows, strict=True)
    return build(samples, labels, **settings)


def test_build_by_hand():
    datasets = built(labelled("ar?"), scale=0.5, shift=0.25)
    assert datasets.weighted == [Weighted("p-0", "p", 1.0, 0.75), Weighted("p-1", "p", 0.0, 0.25)]
    assert datasets.paired == [Pair("p", "p-0", "p-1", 1.0)]


def test_weights_over_a_prompt_are_of_its_clips_with_a_reward_alone():
    """p has two clips with a reward, 1 and 0, at tau 1; s has one, rejected, whose weight is 1 by itself."""
    datasets = built(labelled("a?r", "p") + labelled("r", "s"), shaping="exponential")
    e = math.e
    weights = {row.sample_id: row.weight for row in datasets.weighted}
    assert weights == pytest.approx({"p-0": 2 * e / (1 + e), "p-2": 2 / (1 + e), "s-0": 1.0})
    mixed = labelled("a?r", "p")[:1] + labelled("r", "s") + labelled("a?r", "p")[1:]  # prompts in turn
    assert built(mixed, shaping="exponential").weighted == [datasets.weighted[place] for place in (0, 2, 1)]


def test_the_composition_says_what_the_weights_amount_to():
    """Linear: p has one accepted clip of three, s none: 1 of the 4 with a reward. Group: s without spread keeps 1."""
    rows = labelled("arr", "p") + labelled("r?", "s")
    assert built(rows).composition["weights"]["rwr"] == {"above_0": 1, "effective": 1.0, "effective_per_prompt": 0.5}
    group = built(rows, shaping="group", temperature=1e6).composition["weights"]["rwr"]
    assert group == {"above_0": 4, "effective": pytest.approx(4), "effective_per_prompt": pytest.approx(2)}


def test_soft_rewards_become_weights_and_margins():
    datasets = built(labelled("ar"), reward="p_accept", pairs="margin")
    assert [row.weight for row in datasets.weighted] == [0.9, 0.2]
    assert datasets.paired[0].margin == pytest.approx(0.7)


def test_composition_by_hand():
    rows = labelled("arr?", "p") + labelled("aa", "q") + labelled("r?", "s", "deformable object")
    composition = built(rows).composition
    assert composition["categories"] == {
        "falling down": {"samples": 6, "accepted": 3, "rejected": 2, "unlabelled": 1, "without_reward": 1},
        "deformable object": {"samples": 2, "accepted": 0, "rejected": 1, "unlabelled": 1, "without_reward": 1},
    }
    assert composition["pairs_per_prompt"] == {"p": 2, "q": 0, "s": 0}
    assert composition["prompts_without_a_pair"] == {"q": "all accepted", "s": "all rejected"}
    assert composition["reasons"] == {"all accepted": 1, "all rejected": 1}
    assert (composition["samples"], composition["weighted"], composition["pairs"]) == (8, 6, 2)


def test_no_accepted_clip_is_an_error_that_names_the_set():
    with pytest.raises(ValueError, match="r1/judge: no accepted clip among 3, 1 of them unlabelled"):
        built(labelled("rr?"), shift=0.5)
    with pytest.raises(ValueError, match=r"r1/judge: no clip with a positive weight \(reward score\) among 2"):
        built(labelled("ar"), reward="score")


def test_no_pair_at_all_is_recorded_and_no_error():
    datasets = built(labelled("aa?"))
    assert datasets.paired == [] and datasets.composition["reasons"] == {"all accepted": 1}


# Pairs that a source compared itself


def compared(*rows: tuple[str, str, str | None, float | None]) -> list[Preference]:
    return [Preference("p", first, second, "s", better, p, None, None, 0, None) for first, second, better, p in rows]


def test_the_pairs_of_a_source_that_compares_are_what_it_prefers():
    rows = compared(
        ("a", "b", "first", 0.75), ("a", "c", "second", 0.0), ("b", "c", "tie", 0.5), ("a", "d", None, None)
    )  # fmt: skip
    found = pair_preferred(scored(1.0), rows, 8, 0.0).pairs

    assert found == [Pair("p", "c", "a", 1.0), Pair("p", "a", "b", 0.5)]  # 2 x 0.75 - 1; the most certain first
    assert pair_preferred(scored(1.0), rows, 1, 0.0).pairs == found[:1]
    assert pair_preferred(scored(1.0), rows, 8, 0.6).pairs == found[:1]


def test_swapping_the_names_of_a_compared_pair_changes_no_row():
    rows = compared(("a", "b", "first", 0.75), ("c", "d", "second", 0.125))
    swapped = compared(("b", "a", "second", 0.25), ("d", "c", "first", 0.875))

    assert pair_preferred(scored(1.0), rows, 8, 0.0) == pair_preferred(scored(1.0), swapped, 8, 0.0)


def test_prompts_without_a_preferred_pair_have_a_reason():
    for rows, reason in (
        (compared(("a", "b", "tie", 0.5)), "all ties"),
        (compared(("a", "b", None, None)), "no comparison answered"),
        (compared(("a", "b", "first", 0.6)), "gaps under the minimum"),
        ([], "no comparison answered"),
    ):
        assert pair_preferred(scored(1.0), rows, 8, 0.5) == ([], {"p": reason}), reason


def test_a_source_and_a_strategy_that_do_not_fit_are_an_error_with_its_cure():
    cure = r"build.sources.s: \{reward: score, pairs: preferred\}"
    for strategy, reward in (("all", "score"), ("balanced", "score"), ("preferred", "label"), ("margin", "p_accept")):
        with pytest.raises(ValueError, match=f"s compares clips, so it labels none.*{cure}"):
            check_source(True, strategy, reward, "s")
    for strategy in ("preferred", "margin", "quantile"):
        check_source(True, strategy, "score", "s")
    with pytest.raises(ValueError, match="but s judges one clip at a time"):
        check_source(False, "preferred", "score", "s")
