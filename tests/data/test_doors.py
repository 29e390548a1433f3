"""Names of params.yaml that stand for code: a table's entries, and a user's own modules."""

import pytest

from data.doors import find

TABLE = {"ours": "my_doors.mine"}


@pytest.fixture(autouse=True)
def my_doors(tmp_path, monkeypatch):
    (tmp_path / "my_doors").mkdir()
    (tmp_path / "my_doors/mine.py").write_text("KIND = 1\nOTHER = 2\n")
    (tmp_path / "my_doors/broken.py").write_text("import no_such_library\nKIND = 1\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_name_of_the_table_a_module_and_an_object_in_a_module_are_found():
    assert find("ours", TABLE, "kind", "KIND") == find("my_doors.mine", {}, "kind", "KIND") == 1
    assert find("my_doors.mine.OTHER", {}, "kind", "KIND") == 2


def test_what_cannot_be_found_is_named_with_the_reason_and_what_is_known():
    cases = {
        "theirs": "kind is 'theirs'; known are ours, and dotted paths",
        "my_doors.absent": "kind is 'my_doors.absent', which cannot be imported (module 'my_doors' has no attribute",
        "absent.module": "(No module named 'absent')",
        "my_doors.broken": "(No module named 'no_such_library')",
        7: "kind is 7; known are ours",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError) as error:
            find(name, TABLE, "kind", "KIND")
        assert message in str(error.value), name
