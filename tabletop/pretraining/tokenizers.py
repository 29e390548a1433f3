"""Word-level tokenizers: what the captions' two text encoders and the judges share."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from tabletop.captions import vocabulary


def word_level(words: Iterable[str], unknown: str) -> Tokenizer:
    """A tokenizer of these words, numbered in their order, that splits on whitespace. unknown: one of the words."""
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def caption_tokenizer(
    special: Sequence[str], template: str, pad: str, unknown: str, eos: str, bos: str | None, max_length: int
) -> PreTrainedTokenizerFast:
    """Tokenizer of the tabletop's captions, in lower case.

    special: the tokens that come before the captions' words, in the order of their ids; pad, unknown, eos and bos are
        among them. template: how a caption, $A, stands between its marks, such as `$A </s>`. max_length: in tokens.
    """
    core = word_level([*special, *vocabulary()], unknown)
    core.normalizer = Lowercase()
    marks = [(mark, special.index(mark)) for mark in (bos, eos) if mark is not None]
    core.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    begin = {} if bos is None else {"bos_token": bos}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, unk_token=unknown, eos_token=eos, model_max_length=max_length, **begin
    )
