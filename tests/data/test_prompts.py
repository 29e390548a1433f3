import logging
from collections import Counter
from pathlib import Path

import pytest

from data.prompts import Prompt, leaks, load_prompts, select

FURUTA = Path(__file__).parents[2] / "configs" / "prompt_sets" / "furuta.csv"
HEADER = "prompt_id,prompt,category,split,image,reference\n"


def prompt_file(folder: Path, rows: str, header: str = HEADER) -> Path:
    path = folder / "prompts.csv"
    path.write_text(header + rows, encoding="utf-8")
    return path


def refused(folder: Path, rows: str, message: str, header: str = HEADER) -> None:
    with pytest.raises(ValueError, match=r"prompts\.csv" + message):
        load_prompts(prompt_file(folder, rows, header))


def test_a_row_becomes_a_prompt(tmp_path):
    path = prompt_file(tmp_path, 'a-1,"lifting a cup , slowly",lifting,train,,\n')
    assert load_prompts(path) == [Prompt("a-1", "lifting a cup , slowly", "lifting", "train", None, None)]


def test_image_and_reference_may_have_no_column(tmp_path):
    path = prompt_file(tmp_path, "a-1,lifting,lifting,train\n", "prompt_id,prompt,category,split\n")
    assert load_prompts(path)[0].image is None


def test_image_and_reference_are_taken_from_the_folder_of_the_csv(tmp_path):
    (tmp_path / "first.png").touch()
    prompt = load_prompts(prompt_file(tmp_path, "a-1,lifting,lifting,train,first.png,\n"))[0]
    assert prompt.image == str(tmp_path / "first.png")
    refused(tmp_path, "a-1,lifting,lifting,train,,real.mp4\n", ", row 2: no file .*real.mp4")


def test_what_spreadsheets_write_is_read(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt_id,prompt,category,split\r\na-1, lifting a cup ,lifting,test\r\n\r\n")
    assert load_prompts(path) == [Prompt("a-1", "lifting a cup", "lifting", "test", None, None)]


def test_an_empty_set_is_refused(tmp_path):
    refused(tmp_path, "", ": no prompts; wanted at least one row below the header")
    refused(tmp_path, "", ": no column prompt_id, prompt, category, split", header="")


def test_a_missing_column_is_named(tmp_path):
    refused(tmp_path, "a-1,x,train\n", ": no column category in the header", "prompt_id,prompt,split\n")


def test_a_misspelt_column_is_named(tmp_path):
    refused(tmp_path, "a,x,c,train,\n", ": unknown column imgae", "prompt_id,prompt,category,split,imgae\n")


def test_an_unknown_split_is_named_with_its_row(tmp_path):
    refused(tmp_path, "a,x,c,train,,\nb,y,c,val,,\n", ", row 3: split 'val'; wanted train or test")


def test_a_duplicate_prompt_id_is_named_with_both_rows(tmp_path):
    refused(tmp_path, "a,x,c,train,,\nb,y,c,train,,\na,z,c,train,,\n", ", row 4: prompt_id 'a' already stands in row 2")


def test_an_empty_prompt_is_named_with_its_row(tmp_path):
    refused(tmp_path, "a,  ,c,train,,\n", ", row 2: prompt is empty")


def test_a_prompt_id_that_cannot_be_a_file_name_is_named(tmp_path):
    refused(tmp_path, "a/b,x,c,train,,\n", ", row 2: prompt_id 'a/b'; wanted letters, digits")


def test_a_comma_outside_quotes_is_named_with_its_row(tmp_path):
    refused(tmp_path, "a,lifting, slowly,c,train,,\n", ", row 2: more cells than columns; .* in quotes")
    refused(tmp_path, "a,lifting,c,train\n", ", row 2: fewer cells than columns")


def test_a_quote_that_is_never_closed_is_not_csv(tmp_path):
    refused(tmp_path, 'a,"lifting,c,train,,\nb,x,c,train,,\n', r", row \d: not CSV")


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
    rows = "a,twice,c,train,,\nb,twice,c,train,,\nc,both,c,train,,\nd,both,c,test,,\n"
    with caplog.at_level(logging.WARNING):
        prompts = load_prompts(prompt_file(tmp_path, rows))
    assert leaks(prompts) == ["both"]
    assert "1 texts stand in both train and test" in caplog.text
    assert caplog.text.rstrip().endswith(": both")


def test_a_clean_set_warns_of_nothing(tmp_path, caplog):
    load_prompts(prompt_file(tmp_path, "a,x,c,train,,\nb,y,c,test,,\n"))
    assert not caplog.records


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
