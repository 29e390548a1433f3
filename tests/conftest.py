"""Shared fixtures: tiny random models of the real classes, on disk, never from the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any Hugging Face library reads it
os.environ["FEEDBACK_VERDICTS"] = "off"  # a test that finds kept verdicts would judge nothing

import gc
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

torch.set_num_threads(1)

LONGEST = (
    "test_smoke.py", "test_smoke_families.py", "test_pipeline.py", "test_pretraining.py", "test_kills.py",
    "test_plug_in.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: where files are spread over processes, none is left for the end."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_collection_finish() -> None:
    """What was imported lives on: a collection of garbage that looks through it all takes up to half of a test."""
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # nanobind takes what is frozen for leaked


WORDS = "the a cup box ball red blue green pushes lifts drops rolls into over under off table hand slowly"
WAN_TRANSFORMER = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 16, "freq_dim": 32, "ffn_dim": 48, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a variant of `vfrl tiny`, written once a session. Do not write into it."""
    from generators.tiny.variants import VARIANTS, write_tiny

    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def written(name: str) -> Path:
        write_tiny(VARIANTS[name], folder / name)
        return folder / name

    return written


@pytest.fixture(scope="session")
def tiny_wan_with(tmp_path_factory) -> Callable[..., Path]:
    """Writes a WanPipeline folder whose transformer differs from the tiny one in the given config entries."""
    return lambda **changes: _save_tiny_wan(tmp_path_factory.mktemp("wan") / "generator", **changes)


@pytest.fixture(scope="session")
def tiny_wan(tiny_wan_with) -> Path:
    """A WanPipeline folder of random weights: 4 latent channels, temporal x2, spatial x4, 16-wide text.

    Do not write into it. 5 frames of 16 x 16 make (4, 3, 4, 4) latents.
    """
    return tiny_wan_with()


@pytest.fixture(scope="session")
def forking() -> Iterator[dict[str, str]]:
    """The environment in which the stages of `dvc repro` import nothing again: tests/support/forkserver.py."""
    from tests.support.clone import environment
    from tests.support.forkserver import forkserver

    with forkserver(environment()) as prepared:
        yield prepared


def _save_tiny_wan(folder: Path, **transformer_changes) -> Path:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKLWan(
            base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, attn_scales=[],
            temperal_downsample=[True], in_channels=12, out_channels=12, patch_size=2,
            latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0],
            scale_factor_temporal=2, scale_factor_spatial=4,
        )  # fmt: skip
        transformer = WanTransformer3DModel(**(WAN_TRANSFORMER | transformer_changes))
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0)
        )
    WanPipeline(
        tokenizer=_word_tokenizer(),
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ).save_pretrained(folder)
    return folder


def _word_tokenizer():
    """Splits on whitespace; ends every text in </s>, as UMT5's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side="right"
    )


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """A headless browser for the tests of one file, which are skipped where the machine has no Chromium."""
    from tests.support.browser import CHROMIUM, running_chromium

    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine; `apt-get install chromium` brings it")
    with running_chromium() as browser:
        yield browser


def hear_ctrl_c() -> None:
    """Let a child be interrupted: a shell's background job, as this run may be, passes on that it ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
