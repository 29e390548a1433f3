"""What tiny pipelines share: random modules that are the same every time, and a tokenizer of few words."""

from collections.abc import Callable
from typing import Any

WIDTH = 16  # of text embeddings, and of image embeddings
# The tabletop's captions, and some words for prompts of one's own; any other word is <unk>.
WORDS = """
a an the and of to from on in into at over under off with it that so up down left right
red green blue yellow white black small large wooden metal
ball cube cone cup box table hand camera cloth sponge onto out
pushing lifting lowering moving rolling dropping taking folding unfolding uncovering squeezing
pushes lifts moves rolls drops falls closer away farther each other another
slowly quickly collides stands still
"""


def made(seed: int, build: Callable[[], Any]) -> Any:
    """The module that `build` makes, in eval mode; the same weights for the same seed.

    Weights that are zero as a whole become random: output layers and gates start so, and would hide what is wrong
    behind them.
    """
    import torch

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = build().eval()
        for weight in module.parameters():
            if not weight.any():
                weight.normal_(std=0.05)
    return module


def word_tokenizer(max_tokens: int, words: str = WORDS) -> Any:
    """A tokenizer that has a token for each of these words and ends a text in </s>, as T5's and UMT5's do."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=max_tokens,
    )


def t5_config(tokenizer: Any) -> dict[str, Any]:
    """What T5Config and UMT5Config are made from, for one layer of WIDTH."""
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    return {"vocab_size": len(tokenizer), "pad_token_id": 0, **sizes}
