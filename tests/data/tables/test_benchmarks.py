"""Prompt sets of published benchmarks. The samples here are in the form of their files, and of our making."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import commands.prompts
from data.prompts import load_prompts
from data.tables.benchmarks import BENCHMARKS, read_benchmark

VBENCH = [
    {"prompt_en": "a cup stands still", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a ball and a cup", "dimension": ["multiple_objects", "color"]}
    | {"auxiliary_info": {"multiple_objects": {"object": "ball and cup"}}},
]
VBENCH2 = [
    {"prompt_en": "Harbour, zoom in.", "dimension": ["Camera_Motion"], "auxiliary_info": "zoom_in"},
    {"prompt_en": "A juggler,\n then rain.", "dimension": ["Complex_Plot"], "auxiliary_info": ["Is there a juggler?"]},
    {"prompt_en": "Harbour, zoom in.", "dimension": ["Diversity"]},  # the same text in another dimension
]
VIDEOPHY = """caption,video_url,states_of_matter,complexity,sa,pc
"A spoon, of wood, stirs soup",https://a/1.mp4,solid-fluid,0,1,0
"A spoon, of wood, stirs soup",https://a/2.mp4,solid-fluid,0,0,0
A brick falls,https://a/3.mp4,solid-solid,1,1,1
"""
VIDEOPHY2 = """caption,video_url,sa,pc,joint,action,category,is_hard
A man throws a hat,https://a/1.mp4,5,4,1,throwing,Object Interactions,0
A man throws a hat,https://a/2.mp4,3,2,0,throwing,Object Interactions,0
"""
PHYGEN = [
    {"caption": "Oil is poured in a station", "physical_laws": "Lack of gravity", "sub_category": "Gravity"}
    | {"main_category": "Force"}
]
COMPBENCH = [{"prompt": "A mole digs leftwards", "object_1": "mole", "d_1": "left", "object_2": "", "d_2": ""}]


def written(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(name: str, *paths: Path) -> list[tuple[str, str]]:
    return [(prompt.prompt, prompt.category) for prompt in read_benchmark(name, paths, "test")]


def test_each_benchmarks_files_are_read_a_row_for_each_text_and_category(tmp_path):
    cases = {
        "vbench": (
            written(tmp_path, "VBench_full_info.json", VBENCH),
            [("a cup stands still", "temporal_flickering"), ("a ball and a cup", "multiple_objects")],
        ),
        "vbench2": (
            written(tmp_path, "VBench2_full_info.json", VBENCH2),
            [
                ("Harbour, zoom in.", "Camera_Motion"),
                ("A juggler,  then rain.", "Complex_Plot"),
                ("Harbour, zoom in.", "Diversity"),
            ],
        ),
        "videophy": (
            written(tmp_path, "videophy.csv", VIDEOPHY),
            [("A spoon, of wood, stirs soup", "solid-fluid"), ("A brick falls", "solid-solid")],
        ),
        "videophy2": (
            written(tmp_path, "videophy2.csv", VIDEOPHY2),
            [("A man throws a hat", "Object Interactions")],
        ),
        "phygenbench": (written(tmp_path, "prompts.json", PHYGEN), [("Oil is poured in a station", "Force")]),
        "t2v-compbench": (
            written(tmp_path, "motion_binding.json", COMPBENCH),
            [("A mole digs leftwards", "motion_binding")],
        ),
    }
    assert cases.keys() == BENCHMARKS.keys() == set(commands.prompts.KNOWN)
    for name, (path, expected) in cases.items():
        assert read(name, path) == expected, name


def test_a_file_of_lines_is_read_a_prompt_a_line_and_several_files_make_one_set(tmp_path):
    paths = [
        written(tmp_path, "1_consistent_attr.txt", "A blue tree\n\nA red lake \n"),
        written(tmp_path, "7_numeracy.txt", "Two moles\n"),
    ]
    expected = [
        ("A blue tree", "1_consistent_attr"),
        ("A red lake", "1_consistent_attr"),
        ("Two moles", "7_numeracy"),
    ]
    assert read("t2v-compbench", *paths) == expected


def test_the_command_writes_a_set_that_loads_with_the_files_further_columns(tmp_path):
    source, out = written(tmp_path, "a.json", VBENCH2), tmp_path / "sets/vbench2.csv"
    done = CliRunner().invoke(
        commands.prompts.main, [str(source), "--benchmark", "vbench2", "--out", str(out), "--split", "train"]
    )
    assert done.exit_code == 0, done.output
    assert "3 prompts of VBench-2.0 in 3 categories, split train" in done.output
    assert "licence: Apache-2.0" in done.output and "texts stand in several rows" in done.output
    first, second, _ = load_prompts(out)
    assert (first.prompt_id, first.split) == ("vbench2-0001", "train")
    assert dict(first.others) == {"dimension": '["Camera_Motion"]', "auxiliary_info": "zoom_in"}
    assert dict(second.others)["auxiliary_info"] == '["Is there a juggler?"]'


def test_a_prompt_set_that_is_there_is_not_written_over(tmp_path):
    out = tmp_path / "mine.csv"
    out.write_text("edited by hand")
    call = [str(written(tmp_path, "a.json", VBENCH2)), "--benchmark", "vbench2", "--out", str(out)]
    refused = CliRunner().invoke(commands.prompts.main, call)
    assert refused.exit_code == 2 and f"{out} is there already; --force" in refused.output
    assert out.read_text() == "edited by hand"
    assert CliRunner().invoke(commands.prompts.main, [*call, "--force"]).exit_code == 0 and len(load_prompts(out)) == 3


def test_what_is_no_file_of_the_benchmark_is_an_error_that_says_where_and_what_is_wanted(tmp_path):
    cases = [
        ("vbench2", "x.json", PHYGEN, "entry 1: no 'prompt_en' among caption, .*; its keys are those of phygenbench"),
        ("vbench2", "x.json", {"prompts": []}, "wanted a list of objects, as in vbench2/VBench2_full_info.json"),
        ("vbench2", "x.json", "[", "not read: "),
        ("vbench2", "x.json", "[]", "no prompts"),
        ("vbench2", "x.json", [{"prompt_en": "", "dimension": ["a"]}], "entry 1: prompt_en is empty"),
        ("vbench2", "x.json", [{"prompt_en": "a", "dimension": []}], r"entry 1: dimension is \[\], expected a text"),
        ("vbench2", "x.json", [{"prompt_en": 3, "dimension": ["a"]}], "entry 1: prompt_en is 3, expected a text"),
        ("vbench2", "x.txt", "a prompt\n", "line 1: no 'dimension' among prompt_en"),
        ("videophy", "x.csv", "prompt\na\n", "x.csv.*caption"),
        ("videophy", "x.csv", "caption\na\n", "row 2: no 'states_of_matter' among caption"),
        ("videophy", "x.parquet", "PAR1", r"wanted a \.json, \.csv or \.txt file"),
    ]
    for name, file, content, message in cases:
        with pytest.raises(ValueError, match=message):
            read(name, written(tmp_path, file, content))
    with pytest.raises(ValueError, match="gone.json: not read"):
        read("vbench", tmp_path / "gone.json")
