"""The words of `shapes-wan`: a T5-style tokenizer whose pieces are the world's words, and a small UMT5 encoder."""

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import Unigram
from tokenizers.normalizers import Lowercase, Replace, Sequence, Strip
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .world import BACKGROUNDS, COLORS, DIRECTIONS, SHAPES, SIZES

MAX_SEQUENCE_LENGTH = 64
WORDS = ("a", "and", "on", "moving", "background", *SIZES, *COLORS, *SHAPES, *DIRECTIONS, *BACKGROUNDS)

TEXT_CONFIG = dict(
    vocab_size=32,
    d_model=128,
    d_kv=32,
    num_heads=4,
    d_ff=256,
    num_layers=3,
    dropout_rate=0.0,
    tie_word_embeddings=False,
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A piece a word, in the form of T5's tokenizer; case and punctuation do not matter, other words are `<unk>`."""
    special = ["<pad>", "</s>", "<unk>", "▁"]
    vocab = [(piece, 0.0) for piece in special] + [("▁" + word, -1.0) for word in WORDS]
    assert len(vocab) <= TEXT_CONFIG["vocab_size"]
    tokenizer = Tokenizer(Unigram(vocab, unk_id=special.index("<unk>")))
    tokenizer.normalizer = Sequence([Lowercase(), Replace(Regex("[^a-z]+"), " "), Strip()])
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(
        single=["$A", "</s>"], special_tokens=[("</s>", special.index("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def build_text_encoder() -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(**TEXT_CONFIG))


def encode(encoder: UMT5EncoderModel, tokenizer: PreTrainedTokenizerFast, captions: Iterable[str]) -> Tensor:
    """Captions -> [B, MAX_SEQUENCE_LENGTH, D], zero after each caption's end, as `WanPipeline` hands them over.

    The encoder runs on the longest caption of the batch only: what is masked does not change the rest.
    """
    tokens = tokenizer(
        list(captions), padding=True, truncation=True, max_length=MAX_SEQUENCE_LENGTH, return_tensors="pt"
    )
    mask = tokens.attention_mask.to(encoder.device)
    states = encoder(tokens.input_ids.to(encoder.device), mask).last_hidden_state
    states = states * mask[..., None]
    padding = states.new_zeros(states.shape[0], MAX_SEQUENCE_LENGTH - states.shape[1], states.shape[2])
    return torch.cat([states, padding], dim=1)
