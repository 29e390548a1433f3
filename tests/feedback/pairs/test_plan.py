from collections import Counter

from data.records import Sample
from feedback.pairs.plan import round_robin


def clips(count: int, prompt: str = "p") -> list[Sample]:
    return [
        Sample(f"{prompt}{n}", prompt, prompt, "c", "train", "base", n, 9, 8.0, 32, 32, f"videos/{prompt}{n}.mp4")
        for n in range(count)
    ]


def met(pairs: list[tuple[Sample, Sample]]) -> list[frozenset[str]]:
    return [frozenset((one.sample_id, other.sample_id)) for one, other in pairs]


def test_every_clip_meets_as_many_others_and_none_twice():
    for count, opponents in ((8, 1), (8, 4), (8, 7), (48, 4)):
        pairs = met(round_robin(clips(count), opponents))
        assert len(set(pairs)) == len(pairs) == count * opponents // 2, (count, opponents)
        assert set(Counter(clip for pair in pairs for clip in pair).values()) == {opponents}, (count, opponents)


def test_of_an_odd_number_one_sits_out_a_round():
    pairs = met(round_robin(clips(7), 3))
    games = Counter(clip for pair in pairs for clip in pair)

    assert len(set(pairs)) == 9 and sorted(games.values()) == [2, 2, 2, 3, 3, 3, 3]


def test_more_opponents_than_there_are_is_all_of_them():
    assert len(set(met(round_robin(clips(5), 99)))) == 10
    assert round_robin(clips(1), 4) == []


def test_more_clips_of_other_prompts_change_nothing():
    alone = met(round_robin(clips(6), 2))

    assert met(round_robin([*clips(4, "q"), *clips(6)], 2))[-len(alone) :] == alone
