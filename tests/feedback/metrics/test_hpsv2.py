"""HPSv2 compared with open_clip: random weights of the real architecture, saved in the published checkpoint's form."""

import gzip
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode, default_bpe
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, CLIPTokenizer

from data.records import Sample
from data.store import ClipSet, ClipSetWriter, encode_clips
from data.video import read_video
from feedback.core.kinds import make_source, read_block
from feedback.core.source import Request
from feedback.metrics.clip import VIT_H14
from feedback.metrics.hpsv2_checkpoint import HEADS, convert, converted
from feedback.metrics.hpsv2_model import Tokens, Whole
from tabletop.pretraining.judge_model import word_level_tokenizer
from tests.support.conditions import blank_conditions

EDGE, CONTEXT, VOCABULARY = 28, 16, 49408
VISION = {"image_size": EDGE, "layers": 2, "width": 64, "head_width": 4, "patch_size": 14}
TEXT = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 32, "heads": 16, "layers": 3}
PROMPTS = (
    "A red ball",
    "a cup pushes the  red ball\n over the edge, and it's 12 m away!",
    "people’s “choice” &amp; caf\u00c3\u00a9",  # curly quotes, an HTML entity, a mis-decoded é
    "a very long prompt " * 9,
)


@pytest.fixture(scope="module")
def theirs() -> CLIP:
    torch.manual_seed(0)
    model = CLIP(48, VISION, TEXT).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):  # initially zero, which would not test their assignment
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def checkpoint(theirs, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "HPS.pt"
    torch.save({"epoch": 1, "name": "hps", "state_dict": theirs.state_dict(), "optimizer": {"lr": 0.1}}, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """CLIP's tokenizer in transformers' form, from open_clip's merges."""
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : VOCABULARY - 2 - 512 + 1]]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder = tmp_path_factory.mktemp("tokenizer")
    CLIPTokenizer(vocabulary, merges).save_pretrained(folder)
    return folder


@pytest.fixture
def block(checkpoint, tokenizer, tmp_path) -> dict:
    return {
        "kind": "hpsv2", "path": str(checkpoint), "processor": str(tokenizer), "cache": str(tmp_path / "cache"),
    }  # fmt: skip


def frames(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


# The weights


def test_heads_is_the_number_of_heads_of_vit_h_14():
    config = open_clip.get_model_config("ViT-H-14")
    assert config["vision_cfg"]["width"] / config["vision_cfg"]["head_width"] == HEADS
    assert config["text_cfg"]["heads"] == HEADS


def test_the_converted_models_embeddings_equal_open_clips(theirs, checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "out")
    ours = CLIPModel.from_pretrained(tmp_path / "out")
    pixels = torch.randn(3, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(1))
    tokens = SimpleTokenizer(context_length=CONTEXT)(list(PROMPTS))
    with torch.no_grad():
        images, texts = theirs.encode_image(pixels), theirs.encode_text(tokens)
        our_images = ours.get_image_features(pixel_values=pixels).pooler_output
        our_texts = ours.get_text_features(input_ids=tokens).pooler_output
    assert images.std() > 0.1 and texts.std() > 0.1
    assert torch.allclose(our_images, images, atol=1e-5)
    assert torch.allclose(our_texts, texts, atol=1e-5)
    assert ours.logit_scale.item() == theirs.logit_scale.item()


def test_every_weight_is_converted_once_in_its_dtype(theirs, tmp_path):
    half = {name: weight.half() for name, weight in theirs.state_dict().items()}
    torch.save({"state_dict": half}, tmp_path / "half.pt")
    convert(tmp_path / "half.pt", tmp_path / "out")
    ours = CLIPModel.from_pretrained(tmp_path / "out", dtype="auto")
    assert {weight.dtype for weight in ours.parameters()} == {torch.float16}
    assert sum(map(torch.numel, ours.parameters())) == sum(map(torch.numel, theirs.parameters()))


class Code:
    """Code in a hostile pickle: unpickling it makes a folder."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_pickle_with_code_in_it_is_refused_and_the_code_is_not_run(theirs, tmp_path):
    torch.save({"state_dict": theirs.state_dict(), "more": Code(tmp_path / "ran")}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad.pt: damaged, or contains more than plain tensors, which is refused"):
        convert(tmp_path / "bad.pt", tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # without the check the code runs


def changed(weights: dict, **changes) -> dict:
    return {"state_dict": {k: v for k, v in (weights | changes).items() if v is not None}}


OTHER_LAYOUTS = (
    (lambda given: given, "no tensors under `state_dict`"),
    (lambda given: changed(given, **{"visual.conv1.weight": None}), "visual.conv1.weight and 0 more are missing"),
    (lambda given: changed({"module." + k: v for k, v in given.items()}), "logit_scale, .* and 11 more are missing"),
    (lambda given: changed(given, extra=torch.zeros(2)), r"extra: \(2,\), expected none; and 0 more"),
    (
        lambda given: changed(given, **{"transformer.resblocks.1.ln_1.bias": None}),
        r"text_model.encoder.layers.1.layer_norm1.bias: none, expected \(32,\)",
    ),
    (
        lambda given: changed(given, **{"visual.positional_embedding": torch.zeros(6, 64)}),
        r"vision_model.embeddings.position_embedding.weight: \(6, 64\), expected \(5, 64\)",
    ),
    (
        lambda given: changed(given, **{"token_embedding.weight": torch.zeros(9, 24)}),
        "a width of 24 cannot have ViT-H/14's 16 heads",
    ),
    (
        lambda given: changed({k: v for k, v in given.items() if not k.startswith("transformer.")}),
        "transformer.resblocks.0.mlp.c_fc.weight is missing",
    ),
)


def test_another_layout_is_named(theirs, tmp_path):
    for document, problem in OTHER_LAYOUTS:
        torch.save(document(theirs.state_dict()), tmp_path / "other.pt")
        with pytest.raises(ValueError, match=rf"other.pt: .*{problem}"):
            convert(tmp_path / "other.pt", tmp_path / "out")
        assert not (tmp_path / "out").exists(), problem


def test_a_file_that_is_not_a_checkpoint_is_named(tmp_path):
    (tmp_path / "page.pt").write_text("<html>Not found</html>")
    with pytest.raises(ValueError, match=r"page.pt: damaged, or contains more than plain tensors"):
        convert(tmp_path / "page.pt", tmp_path / "out")


def test_a_checkpoint_is_converted_once(checkpoint, tmp_path):
    folder, sha256 = converted(checkpoint, tmp_path)
    assert folder == tmp_path / sha256 and len(sha256) == 64
    weights = folder / "model.safetensors"
    before = weights.stat()
    assert converted(checkpoint, tmp_path) == (folder, sha256)
    assert (weights.stat().st_ino, weights.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)

    bytes_before = weights.read_bytes()
    weights.write_bytes(bytes_before[:100])  # damaged
    converted(checkpoint, tmp_path)
    assert weights.read_bytes() == bytes_before


def test_a_killed_conversion_is_repeated(checkpoint, tmp_path):
    folder, _ = converted(checkpoint, tmp_path)
    folder.rename(tmp_path / f".{folder.name}.partial")
    assert not folder.exists()
    converted(checkpoint, tmp_path)
    assert CLIPModel.from_pretrained(folder) and not (tmp_path / f".{folder.name}.partial").exists()


# The inputs


@pytest.mark.parametrize(("height", "width"), [(224, 224), (240, 320), (97, 41), (32, 33), (224, 100), (31, 500)])
def test_frames_are_resized_whole_and_padded_with_black(height, width):
    """Compared with Pillow, which also resizes each channel in floating point without clipping."""
    given = frames(2, height, width)
    scale = 224 / max(height, width)
    new = round(width * scale), round(height * scale)
    top, left = (224 - new[1]) // 2, (224 - new[0]) // 2
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = np.zeros((2, 3, 224, 224), np.float32)
    for frame in range(2):
        for channel in range(3):
            picture = Image.fromarray(given[frame, :, :, channel].astype(np.float32) / 255)
            small = np.asarray(picture.resize(new, Image.Resampling.BICUBIC))
            expected[frame, channel, top : top + new[1], left : left + new[0]] = small
            expected[frame, channel] = (expected[frame, channel] - mean[channel]) / std[channel]
    assert np.allclose(Whole(224)(given).numpy(), expected, atol=1e-4)


def test_the_tokens_of_prompts_equal_open_clips(tokenizer):
    settings = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
    ours = Tokens(AutoTokenizer.from_pretrained(tokenizer))(PROMPTS, **settings)
    theirs = SimpleTokenizer(context_length=CONTEXT)(list(PROMPTS))
    assert ours["attention_mask"].sum(-1).tolist() == (theirs != 0).sum(-1).tolist()
    assert torch.equal(ours["input_ids"] * ours["attention_mask"], theirs)  # theirs pads with 0


# The metric


def judged(source, tmp_path: Path) -> list[list]:
    """The source's verdicts on a clip for each prompt, 3 frames of 36 x 52."""
    writer = ClipSetWriter(tmp_path / "set")
    samples = [
        Sample(f"clip{n}", f"p{n}", prompt, "c", "train", "base", n, 3, 8.0, 36, 52, f"videos/clip{n}.mp4")
        for n, prompt in enumerate(PROMPTS)
    ]
    clips = frames(3 * len(PROMPTS), 36, 52).reshape(len(PROMPTS), 3, 36, 52, 3)
    writer.add_batch(0, samples, encode_clips(samples, clips), torch.zeros(len(PROMPTS), 1, 1, 1, 1))
    writer.finish(blank_conditions(f"p{n}" for n in range(len(PROMPTS))), {})
    clip_set = ClipSet.open(tmp_path / "set")
    return list(source.judge(Request(sample, clip_set.video(sample)) for sample in clip_set.samples))


def test_the_score_is_open_clips_cosine_summed_over_frames(theirs, block, tmp_path):
    (tmp_path / "c").mkdir()
    verdicts = judged(make_source("h", block), tmp_path / "c")
    for number, (prompt, (verdict,)) in enumerate(zip(PROMPTS, verdicts, strict=True)):
        pixels = read_video(tmp_path / f"c/set/videos/clip{number}.mp4")
        with torch.no_grad():
            images, texts, _ = theirs(Whole(EDGE)(pixels), SimpleTokenizer(context_length=CONTEXT)([prompt]))
        assert verdict.score == pytest.approx((images @ texts[0]).sum().item(), abs=1e-5)
        assert verdict.answer is None
    assert len({round(verdict.score, 3) for (verdict,) in verdicts}) == len(PROMPTS)


def test_a_converted_folder_has_the_scores_of_its_checkpoint(block, checkpoint, tmp_path):
    folder, sha256 = converted(checkpoint, Path(block["cache"]))
    sources = [make_source("h", block), make_source("h", block | {"path": str(folder)})]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, other = (judged(source, tmp_path / name) for source, name in zip(sources, "ab", strict=True))
    assert [v.score for (v,) in one] == [v.score for (v,) in other]
    assert sources[0].model_version == sha256[:12]


def test_the_default_is_v2_1_from_the_hub():
    options = read_block("h", {"kind": "hpsv2"})[1]
    assert (options.path, options.file, options.reduce) == ("xswu/HPSv2", "HPS_v2.1_compressed.pt", "sum")


def test_without_a_network_the_error_names_the_download_and_the_option():
    url = "https://huggingface.co/nobody/none/resolve/main/HPS_v2.1_compressed.pt"
    with pytest.raises(
        ValueError, match=rf"feedback.sources.h.path: no download .*Download {url} by hand and give the file as"
    ):
        make_source("h", {"kind": "hpsv2", "path": "nobody/none"})
    url = "https://huggingface.co/xswu/HPSv2/resolve/main/HPS_v2.1_compressed.pt"
    with pytest.raises(ValueError, match=rf"feedback.sources.h.path: gone/HPS.pt does not exist; download {url}"):
        read_block("h", {"kind": "hpsv2", "path": "gone/HPS.pt"})


def test_an_unavailable_tokenizer_and_one_of_another_model_are_named(block, tmp_path):
    with pytest.raises(ValueError, match=rf"(?s)feedback.sources.h.processor: no tokenizer .*{VIT_H14}"):
        make_source("h", block | {"processor": "nobody/none"})
    word_level_tokenizer(["ball"]).save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match=r"processor: .*words ends a text with token 3, but the model with 49407"):
        make_source("h", block | {"processor": str(tmp_path / "words")})


def test_wrong_options_are_named():
    wrong = [
        ({"reduce": "max"}, "reduce is 'max'"),
        ({"path": "nowhere"}, "path: nowhere is neither a file, a folder nor a hub id"),
        ({"processor": "nowhere"}, "processor: nowhere is neither a folder nor a hub id"),
        ({"version": "2.0"}, "version .* is unknown"),
    ]
    for changes, problem in wrong:
        with pytest.raises(ValueError, match=f"feedback.sources.h.{problem}"):
            read_block("h", {"kind": "hpsv2"} | changes)
