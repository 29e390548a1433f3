import io
import logging
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data.prompts import Prompt, leaks, load_prompts, remarks, select, write_prompts
from tests.support.refusals import assert_refused

FURUTA = Path(__file__).parents[2] / "configs" / "prompt_sets" / "furuta.csv"
FOUR = "prompt_id,prompt,category,split\n"
HEADER = "prompt_id,prompt,category,split,image,reference\n"
TWO = [Prompt("a", "lifting a cup", "lifting", "train", None, None), Prompt("b", "é, 杯", "other", "test", None, None)]
TEXT = FOUR + 'a,lifting a cup,lifting,train\nb,"é, 杯",other,test\n'


def prompt_file(folder: Path, content: str | bytes) -> Path:
    path = folder / "prompts.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# What is accepted


def test_a_row_becomes_a_prompt(tmp_path):
    path = prompt_file(tmp_path, HEADER + 'a-1,"lifting a cup , slowly",lifting,train,,\n')
    assert load_prompts(path) == [Prompt("a-1", "lifting a cup , slowly", "lifting", "train", None, None)]


def test_what_spreadsheets_and_people_write_is_read_as_the_same_prompts(tmp_path, caplog):
    for name, content in {
        "as it should be": TEXT,
        "with a byte order mark": "\ufeff" + TEXT,
        "CRLF": TEXT.replace("\n", "\r\n"),
        "CR": TEXT.replace("\n", "\r"),
        "byte order mark and CRLF": "\ufeff" + TEXT.replace("\n", "\r\n"),
        "no line end at the end": TEXT.rstrip(),
        "everything in quotes": '"' + FOUR.strip().replace(",", '","') + '"\n"a","lifting a cup","lifting","train"\n'
        '"b","é, 杯","other","test"\n',
        "spaces around cells": FOUR + ' a , lifting a cup , lifting , train \nb,"é, 杯",other,test\xa0\n',
        "spaces around names": TEXT.replace(FOUR, " prompt_id, prompt , category,split \n"),
        "names in another case": TEXT.replace(FOUR, "Prompt_ID,Prompt,CATEGORY,Split\n"),
        "names with spaces": TEXT.replace(FOUR, "Prompt ID,prompt,category,split\n"),
        "names with dashes": TEXT.replace(FOUR, "prompt-id,prompt,category,split\n"),
        "an empty last column": TEXT.replace("split\n", "split,\n").replace("train\n", "train,\n"),
        "three empty last columns": TEXT.replace("split\n", "split,,,\n").replace("t\n", "t,,,\n"),
        "an empty column in a row alone": TEXT.replace("train\n", "train,,\n"),
        "an empty column in the header alone": TEXT.replace("split\n", "split,\n"),
        "an empty first column": "\n".join("," + line for line in TEXT.splitlines()),
        "empty rows": TEXT.replace("train\n", "train\n\n,,,\n  ,,,\n") + "\n\n",
        "columns in another order": "split,prompt,prompt_id,category\ntrain,lifting a cup,a,lifting\n"
        'test,"é, 杯",b,other\n',
        "optional columns that are empty": HEADER + 'a,lifting a cup,lifting,train,,\nb,"é, 杯",other,test,,\n',
        "rows without the last, empty cells": HEADER + 'a,lifting a cup,lifting,train\nb,"é, 杯",other,test,\n',
    }.items():
        assert load_prompts(prompt_file(tmp_path, content)) == TWO, name
        assert not caplog.records, name


def test_other_columns_are_kept_and_written(tmp_path):
    path = prompt_file(tmp_path, 'Notes,prompt_id,prompt,category,split,source\n,a,x,c,train,me\n"1\n2",b,y,c,test\n')
    prompts = load_prompts(path)

    assert [prompt.others for prompt in prompts] == [
        (("Notes", ""), ("source", "me")),
        (("Notes", "1\n2"), ("source", "")),
    ]
    write_prompts(tmp_path / "written.csv", prompts)
    assert load_prompts(tmp_path / "written.csv") == prompts


def test_image_and_reference_are_taken_from_the_folder_of_the_csv(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "first.png")
    path = prompt_file(tmp_path, HEADER.replace("image", "Image") + "a-1,lifting,lifting,train,first.png,\n")
    (prompt,) = load_prompts(path)
    assert prompt.image == str(tmp_path / "first.png")

    write_prompts(tmp_path / "deeper/written.csv", [prompt])
    (written,) = load_prompts(tmp_path / "deeper/written.csv")
    assert Path(written.image or "").samefile(tmp_path / "first.png")


def test_a_column_that_is_nearly_an_optional_one_is_a_warning(tmp_path, caplog):
    for name, meant in {
        "images": "image",
        "image_path": "image",
        "imgae": "image",
        "reference_video": "reference",
        "References": "reference",
        "notes": None,
        "preference": None,
        "imagination": None,
    }.items():
        caplog.clear()
        load_prompts(prompt_file(tmp_path, f"prompt_id,prompt,category,split,{name}\na,x,c,train,y\nb,z,c,test,\n"))
        expected = f"column {name!r} is kept and not used; the name of the column for such files is {meant!r}"
        assert (expected in caplog.text) if meant else not caplog.records, name


# What is refused


def workbook(inner: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(inner, "<xml/>")
    return content.getvalue()


CURE = "save it as 'CSV UTF-8"


def test_what_cannot_be_read_is_refused_with_file_row_and_cure(tmp_path):
    good = "a,x,c,train\n"
    cases: list[tuple[str | bytes, str]] = [
        # other kinds of file
        ("", ": the file is empty; wanted a header and rows"),
        (" \n\n", ": the file is empty"),
        (TEXT.encode("utf-16"), f": text in UTF-16 .*'Unicode Text'.* {CURE}"),
        ("\ufeff".encode("utf-16-be") + TEXT.encode("utf-16-be"), f": text in UTF-16 .* {CURE}"),
        (TEXT.encode("utf-16-le"), f": text in UTF-16 .* {CURE}"),
        (TEXT.encode("utf-16-be"), f": text in UTF-16 .* {CURE}"),
        (TEXT.encode("utf-32"), f": text in UTF-32 .* {CURE}"),
        ((FOUR + good + "b,über,c,train\n").encode("cp1252"), f", line 3: byte 0xfc is not UTF-8; .* 'ü'; {CURE}"),
        ((FOUR + "a,a “cup”,c,train\n").encode("cp1252"), f", line 2: byte 0x93 is not UTF-8; .* '“'; {CURE}"),
        ((FOUR + good + "b,ü,c,train\n").replace("\n", "\r").encode("latin-1"), ", line 3: byte 0xfc is not UTF-8"),
        (workbook("xl/workbook.xml"), rf": an Excel workbook \(\.xlsx\), and not a CSV file; .*{CURE}"),
        (workbook("content.xml"), rf": an OpenDocument spreadsheet \(\.ods\), .*{CURE}"),
        (workbook("prompts.csv"), ": a zip archive, and not"),
        (b"PK\x03\x04 cut", ": a zip archive, and not"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", rf": an Excel workbook \(\.xls\), .*{CURE}"),
        (b"\x1f\x8b\x08\0", ": a gzip archive, and not"),
        (FOUR + good + "b,x\0y,c,train\n", ", line 3: a NUL byte, which no text has"),
        # separators and header
        (TEXT.replace(",", ";"), f": separated by semicolons; wanted commas: .*{CURE}"),
        (TEXT.replace(",", "\t"), ": separated by tabs; wanted commas"),
        (TEXT.replace(",", "|"), ": separated by vertical bars; wanted commas"),
        ("sep=;\n" + TEXT.replace(",", ";"), ": separated by semicolons"),
        ("sep=,\n" + TEXT, ", row 1: 'sep=' is a note for Excel; delete this row"),
        (FOUR, ": no prompts; wanted at least one row below the header"),
        (FOUR + ",,,\n", ": no prompts"),
        (good, ": no column prompt_id, prompt, category, split in the header 'a, x, c, train'"),
        (
            "prompt_id,prompt,split\na,x,train\n",
            ": no column category in the header 'prompt_id, prompt, split'; wanted",
        ),
        ("prompt_id,prompt,category,splits\n", ": no column split in .*; is 'splits' meant\\? wanted"),
        ("prompt_id,prompt,prompt,category,split\n", ": columns 2 and 3 have the same name, 'prompt'; rename one"),
        ("prompt_id,prompt,Prompt,category,split\n", ": columns 2 and 3 have the same name, 'prompt'"),
        (FOUR.replace("\n", ",n,n\n"), ": columns 5 and 6 have the same name, 'n'"),
        # cells
        (FOUR + good + "b,y,c,val\n", ", row 3: split 'val'; wanted train or test"),
        (FOUR + good + "b,y,c,Train\n", ", row 3: split 'Train'; wanted train or test"),
        (FOUR + good + "b,y,c,train\na,z,c,train\n", ", row 4: prompt_id 'a' already stands in row 2"),
        (FOUR + "a,  ,c,train\n", ", row 2: prompt is empty"),
        (FOUR + "a,x,,train\n", ", row 2: category is empty"),
        (FOUR + "a/b,x,c,train\n", ", row 2: prompt_id 'a/b'; wanted letters, digits"),
        (FOUR + "a b,x,c,train\n", ", row 2: prompt_id 'a b'; wanted letters, digits"),
        (FOUR + "ä,x,c,train\n", ", row 2: prompt_id 'ä'; wanted letters, digits"),
        (FOUR + "a,lifting, slowly,c,train\n", ", row 2: more cells than columns, such as 'train'; .* in quotes"),
        (FOUR.replace("\n", ",\n") + "a,lifting, slowly,c,train\n", ", row 2: more cells than columns"),
        (FOUR + "a,“lifting, slowly”,c,train\n", ", row 2: more cells than columns.*; curly quotes are not quotes"),
        (HEADER + "a,lifting,c\n", ", row 2: fewer cells than columns: no cell for split"),
        (HEADER + "a,x,c,train,,real.mp4\n", ", row 2: no file .*real.mp4; paths are taken from the folder of the CSV"),
        (FOUR + good + '\nb,"y\nz",c,train\n', ", row 4: prompt has a line break in it: 'y.nz'; write it on one line"),
        (FOUR + good + 'b,"y,c,train\nd,z,c,train\n', ", row 3: a quote opens in this row and never closes"),
        (FOUR + good + 'b,"a "red" cup",c,train\n', ", row 3: a quoted text goes on after its closing quote; .* twice"),
        (FOUR + "a," + "x" * 200_000 + ",c,train\n", r", row 2: not CSV \(field larger than field limit"),
    ]

    def load(content: str | bytes) -> None:
        load_prompts(prompt_file(tmp_path, content))

    assert_refused(load, [(content, r"prompts\.csv" + pattern) for content, pattern in cases])


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    with pytest.raises(ValueError, match="x.csv: not read: No such file or directory"):
        load_prompts(tmp_path / "x.csv")
    with pytest.raises(ValueError, match="a folder; wanted a CSV file"):
        load_prompts(tmp_path)


def test_rows_are_counted_as_a_spreadsheet_counts_them(tmp_path):
    path = prompt_file(tmp_path, 'notes,prompt_id,prompt,category,split\n"1\n2\n3",a,x,c,train\n\n,b,y,c,val\n')
    with pytest.raises(ValueError, match=r"prompts\.csv, row 4: split 'val'"):
        load_prompts(path)


# What may be a mistake


def test_what_may_be_a_mistake_is_a_warning_that_names_the_rows(tmp_path, caplog):
    for rows, expected in {
        "a,x,c,train\nb,y,c,test\n": [],
        "a,x,c,train\n": [],
        "a,x,c,test\n": ["no row has split train, so a round that draws from train (generate.split) has no prompts"],
        "a,x,c,train\nb,x,c,train\n": ["texts stand in several rows of one split, and count as often (1): a = b"],
        "p2,x,c,train\nP2,y,c,train\n": [
            "prompt_ids differ only in case, so that file names collide on macOS and Windows (1): p2 = P2"
        ],
        "a,“lifting”,c,train\n": ["prompts stand in curly quotes, which are taken for a part of the text (1): a"],
        "a,a “red” cup,c,train\n": [],
        "a,\ufffdber,c,train\n": [
            "prompts hold the sign \ufffd in place of a letter that an earlier program could not read (1): a"
        ],
        "".join(f"a{n},x,c,train\nb{n},x{n},c,train\nB{n},y{n},c,train\n" for n in range(6)): [
            "texts stand in several rows of one split, and count as often (1): a0 = a1 = a2 = a3 = a4 = a5",
            "prompt_ids differ only in case, so that file names collide on macOS and Windows (6): "
            "b0 = B0; b1 = B1; b2 = B2; b3 = B3; b4 = B4; and 1 more",
        ],
    }.items():
        caplog.clear()
        path = prompt_file(tmp_path, FOUR + rows)
        assert remarks(load_prompts(path)) == expected, rows
        assert [record.getMessage() for record in caplog.records] == [f"{path}: {one}" for one in expected], rows


def test_select_takes_a_split_or_all():
    train, test = (Prompt(split, "x", "c", split, None, None) for split in ("train", "test"))
    assert select([train, test], "train") == [train]
    assert select([train, test], "test") == [test]
    assert select([train, test], "all") == [train, test]
    with pytest.raises(ValueError, match="no prompts in split 'test' among 1"):
        select([train], "test")
    with pytest.raises(ValueError, match="split 'val'; wanted one of train, test, all"):
        select([train], "val")


def test_a_text_in_both_splits_is_a_leak_a_repeated_one_is_not(tmp_path, caplog):
    rows = "a,twice,c,train\nb,twice,c,train\nc,both,c,train\nd,both,c,test\n"
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(prompt_file(tmp_path, FOUR + rows))
    assert leaks(prompts) == ["both"]
    message = "texts stand in both train and test, so the test split is not held out for them (1): both"
    assert message in caplog.text


def test_a_text_with_another_image_is_another_prompt(tmp_path):
    for name in ("one.png", "two.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    rows = "a,push,c,train,one.png,\nb,push,c,train,two.png,\nc,push,c,test,two.png,\nd,pull,c,test,one.png,\n"
    prompts = load_prompts(prompt_file(tmp_path, HEADER + rows))

    assert leaks(prompts) == ["push"] and leaks(prompts[:2] + prompts[3:]) == []  # b and c share text and image
    assert remarks(prompts[:2] + prompts[3:]) == []  # nor does a repeat b


def test_a_set_where_some_prompts_have_an_image_is_a_warning(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    prompts = load_prompts(prompt_file(tmp_path, HEADER + "a,push,c,train,one.png,\nb,pull,c,train,,\n"))

    assert remarks(prompts) == [
        "1 prompts have an image and 1 have none, and one clip set takes prompts of one sort alone: b"
    ]


def test_an_image_that_is_none_is_refused_with_its_row(tmp_path):
    (tmp_path / "first.png").write_text("a picture")
    path = prompt_file(tmp_path, HEADER + "a,push,c,train,,\nb,pull,c,train,first.png,\n")
    with pytest.raises(ValueError, match=r"prompts.csv, row 3: .*first.png: not a readable image; read are PNG, JPEG"):
        load_prompts(path)


def test_the_papers_prompts_are_as_printed(caplog):
    prompts = load_prompts(FURUTA)
    assert len(prompts) == 160
    assert len({prompt.prompt for prompt in prompts}) == 156
    assert Counter((prompt.category, prompt.split) for prompt in prompts) == {
        ("object_removal", "train"): 24,
        ("object_removal", "test"): 8,
        ("multiple_objects", "train"): 24,
        ("multiple_objects", "test"): 8,
        ("deformable_object", "train"): 23,  # the text says 24 and 8
        ("deformable_object", "test"): 9,
        ("directional_movement", "train"): 24,
        ("directional_movement", "test"): 8,
        ("falling_down", "train"): 24,
        ("falling_down", "test"): 8,
    }
    texts = {prompt.prompt_id: prompt.prompt for prompt in prompts}
    assert texts["or-train-15"] == "taking seisor out of tin"
    assert texts["mo-test-03"] == "putting lighter into shoe"
    assert texts["dm-test-02"] == "pushing rubik ' s cube from right to left"
    assert texts["fd-train-21"] == "lifting yellow marker up completely , then letting it drop down"


def test_the_papers_prompts_leak_twice_and_the_loader_says_so(caplog):
    both = ["pushing calculator from left to right", "tearing paper into two pieces"]
    assert leaks(load_prompts(FURUTA)) == both
    assert all(text in caplog.text for text in both)
