"""The tiny models: stock pipelines load them, their bytes are the same every time, and nothing in them is silent."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest

from generators.core.load import examine_generator
from generators.core.size import VideoSize
from generators.core.solvers import check_solver
from generators.tiny.parts import WORDS, word_tokenizer
from generators.tiny.variants import VARIANTS, params_of, write_tiny
from tests.support.stock import first_frame, load_stock, run_stock

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stock_pipeline_loads_the_model_and_its_clip_depends_on_prompt_image_and_seed(name, tiny_model):
    variant = VARIANTS[name]
    images = {"none": [None], "optional": [None, first_frame(0)], "needed": [first_frame(0)]}[variant.image]
    for image in images:
        pipeline = load_stock(tiny_model(name), image is not None)
        clip = run_stock(pipeline, variant, image)

        assert clip.shape == (1, variant.num_frames, variant.height, variant.width, 3)
        assert np.isfinite(clip).all() and clip.std() > 1e-3
        assert np.array_equal(clip, run_stock(pipeline, variant, image))
        assert np.abs(clip - run_stock(pipeline, variant, image, prompt="pushing green cube")).max() > 1e-4
        if image is not None:
            assert np.abs(clip - run_stock(pipeline, variant, first_frame(1))).max() > 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_no_weight_is_zero_as_a_whole(name, tiny_model):
    for part in load_stock(tiny_model(name)).components.values():
        for key, weight in part.named_parameters() if hasattr(part, "named_parameters") else ():
            assert weight.any(), key


@pytest.mark.parametrize("name", VARIANTS)
def test_writing_twice_gives_equal_bytes(name, tiny_model, tmp_path):
    write_tiny(VARIANTS[name], tmp_path / "again")

    assert hashes(tmp_path / "again") == hashes(tiny_model(name))


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_values_for_params_fit_the_model(name, tiny_model):
    params = params_of(VARIANTS[name], str(tiny_model(name)))

    generator = examine_generator(size=VideoSize(**params["video"]), **params["generator"])
    assert generator.image == VARIANTS[name].image
    check_solver(generator.process, params["generate"]["solver"])
    training = params.get("train", {}).get("common", {})
    assert generator.takes_lora != training.get("full", False)
    assert generator.checkpoints or training["gradient_checkpointing"] is False


def test_every_word_of_the_tabletops_captions_has_a_token():
    tokenizer = word_tokenizer(16)
    with (ROOT / "configs/prompt_sets/tabletop.csv").open(encoding="utf-8") as file:
        captions = [row["prompt"] for row in csv.DictReader(file)]

    tokens = tokenizer(captions, truncation=False).input_ids
    assert not any(tokenizer.unk_token_id in row for row in tokens)
    assert max(map(len, tokens)) <= 16
    assert len(set(WORDS.split())) == len(WORDS.split())
