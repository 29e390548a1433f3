"""A round's datasets as folders."""

import pytest

from data.manifest import StoreError
from data.records import Pair, Sample, Weighted
from rl.objectives import OBJECTIVES, OF_ROUNDS
from rl.tables import read_table, write_tables

SAMPLES = [Sample(f"s{i}", "p", "a cup", "c", "train", "base", i, 5, 8.0, 16, 16, f"videos/s{i}.mp4") for i in range(3)]
WEIGHTED = [Weighted("s0", "p", 1.0, 2.0), Weighted("s1", "p", 0.0, 1.0)]
PAIRED = [Pair("p", "s0", "s1", 1.0)]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "judge", WEIGHTED, PAIRED, "judge")


def write(folder, weighted, paired, source, pairs="all"):
    write_tables(
        folder,
        SAMPLES,
        weighted,
        paired,
        {"samples": 3},
        {"round": "r1"},
        {"source": source},
        {"scale": 1.0},
        {"pairs": pairs},
    )
    return folder


def test_every_objective_has_a_folder_with_its_rows(folder):
    tables = {name: read_table(folder / name, objective) for name, objective in OF_ROUNDS.items()}

    assert tables["rwr"] == (WEIGHTED, {"round": "r1", "source": "judge", "build": {"scale": 1.0}})
    assert tables["dpo"] == (PAIRED, {"round": "r1", "source": "judge", "build": {"pairs": "all"}})


def test_sft_has_every_clip_with_weight_one_and_knows_no_judge(folder):
    table = read_table(folder / "sft", OBJECTIVES["sft"])

    assert [(row.sample_id, row.weight) for row in table.rows] == [("s0", 1.0), ("s1", 1.0), ("s2", 1.0)]
    assert table.facts == {"round": "r1"}


def test_kto_and_nft_have_the_rewards_whatever_weights_they_became(folder):
    """So that another scale or shift of build is no reason to train them again."""
    for name in ("kto", "nft"):
        table = read_table(folder / name, OBJECTIVES[name])
        assert table == (
            [Weighted("s0", "p", 1.0, 1.0), Weighted("s1", "p", 0.0, 1.0)],
            {"round": "r1", "source": "judge"},
        )


def test_another_judge_leaves_the_bytes_of_sft_as_they_are(folder, tmp_path):
    other = write(tmp_path / "physics", WEIGHTED[:1], [], "physics")

    def contents(of):
        return {path.name: path.read_bytes() for path in of.iterdir()}

    assert contents(folder / "sft") == contents(other / "sft")
    assert contents(folder / "rwr") != contents(other / "rwr")


def test_another_pairing_leaves_the_bytes_of_rwr_as_they_are(folder, tmp_path):
    other = write(tmp_path / "margin", WEIGHTED, [], "judge", pairs="margin")

    for name in ("weighted.parquet", "manifest.json"):
        assert (folder / "rwr" / name).read_bytes() == (other / "rwr" / name).read_bytes()
    assert (folder / "dpo/manifest.json").read_bytes() != (other / "dpo/manifest.json").read_bytes()


def test_hugging_face_reads_a_folder_as_it_is(folder, tmp_path):
    from datasets import load_dataset

    rows = load_dataset(str(folder / "dpo"), cache_dir=str(tmp_path / "cache"), split="train")

    assert rows.to_list() == [{"prompt_id": "p", "chosen": "s0", "rejected": "s1", "margin": 1.0}]


def test_a_half_written_folder_is_refused(folder):
    (folder / "rwr" / "manifest.json").unlink()

    with pytest.raises(StoreError, match="rwr"):
        read_table(folder / "rwr", OBJECTIVES["rwr"])
