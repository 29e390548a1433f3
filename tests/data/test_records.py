from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.records import Label, Sample, Verdict, by_id, read_rows, schema, write_rows

SAMPLE = Sample("s0", "p0", "lifting", "lift", "train", "base", 7, 9, 8.0, 64, 64, "videos/s0.mp4")
LABEL = Label("s0", "judge", None, None, None, 3, 3, "every vote was blocked")
VERDICT = Verdict(
    "s0", "judge", "q", 0, None, None, None, None, "I cannot say", "m", "1", "h", [0, 4, 8], None, None, "unreadable"
)


def test_rows_come_back_as_they_were(tmp_path):
    for row in (SAMPLE, LABEL, VERDICT, replace(VERDICT, answer=False, frames=[])):
        write_rows(tmp_path / "rows.parquet", [row], type(row))
        assert read_rows(tmp_path / "rows.parquet", type(row)) == [row], row


def test_no_rows_are_a_table_too(tmp_path):
    write_rows(tmp_path / "rows.parquet", [], Sample)
    assert read_rows(tmp_path / "rows.parquet", Sample) == []


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / name, [SAMPLE, replace(SAMPLE, sample_id="s1")], Sample)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_only_columns_that_may_be_unknown_are_nullable(tmp_path):
    assert schema(Label).field("label").nullable
    assert not schema(Label).field("votes").nullable
    with pytest.raises(ValueError, match="votes"):
        write_rows(tmp_path / "rows.parquet", [replace(LABEL, votes=None)], Label)
    assert not (tmp_path / "rows.parquet").exists()


def test_a_fraction_is_not_cut_to_a_whole_number(tmp_path):
    with pytest.raises(ValueError, match=r"rows.parquet: row 1: seed is 1.5"):
        write_rows(tmp_path / "rows.parquet", [SAMPLE, replace(SAMPLE, seed=1.5)], Sample)


def test_a_table_of_another_kind_is_named(tmp_path):
    write_rows(tmp_path / "rows.parquet", [LABEL], Label)
    with pytest.raises(ValueError, match=r"rows.parquet: columns .* expected .* of Sample"):
        read_rows(tmp_path / "rows.parquet", Sample)


def test_a_column_of_another_type_is_named(tmp_path):
    table = pa.Table.from_pylist([{**vars(LABEL), "votes": "three"}])
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows.parquet: .*Label"):
        read_rows(tmp_path / "rows.parquet", Label)


def test_a_null_in_a_column_that_must_be_known_is_named(tmp_path):
    table = pa.Table.from_pylist([{**vars(LABEL), "votes": None}])
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"rows.parquet: .*votes.*Label|rows.parquet: .*Label.*votes"):
        read_rows(tmp_path / "rows.parquet", Label)


def test_tables_that_other_tools_rewrote_are_read(tmp_path):
    write_rows(tmp_path / "rows.parquet", [LABEL], Label)
    table = pq.read_table(tmp_path / "rows.parquet")
    loose = pa.schema([(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in table.schema])
    pq.write_table(table.cast(loose), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet", Label) == [LABEL]


def test_a_torn_table_is_named(tmp_path):
    for content in (b"", b"PAR1", b"not a table at all"):
        (tmp_path / "rows.parquet").write_bytes(content)
        with pytest.raises(ValueError, match="rows.parquet: not a readable parquet file"):
            read_rows(tmp_path / "rows.parquet", Sample)


def test_duplicate_sample_ids_are_counted():
    assert by_id([SAMPLE]) == {"s0": SAMPLE}
    with pytest.raises(ValueError, match="1 duplicate sample_id among 2 rows"):
        by_id([SAMPLE, SAMPLE])
