"""Prompts that are longer than the text encoders read, counted by the checkpoint's tokenizers alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..config.run import RunConfig
from .family import Family

_QUOTED = re.compile(r"\"(.*?)\"|“(.*?)”")  # what HunyuanVideo 1.5's pipeline takes for text in the picture


class TextReader(NamedTuple):
    """One text encoder's view of a prompt.

    Attributes:
        encoder: its name in messages and sidecars; None for the first, which reads `sampling.max_sequence_length`.
        limit: tokens that it reads; None: that setting.
        only_quoted: it reads the parts of a prompt in quotes.
        tokenizer: of the checkpoint.
    """

    encoder: str | None
    limit: int | None
    only_quoted: bool
    tokenizer: Any


def text_readers(family: Family, tokenizers: Mapping[str, Any]) -> list[TextReader]:
    """Return how the encoders of a family read prompts.

    Args:
        tokenizers: by the names of their folders.
    """
    readers = [TextReader(None, None, False, tokenizers["tokenizer"])]
    if (second := family.second_text) is not None:
        readers.append(TextReader(second.encoder, second.limit, second.only_quoted, tokenizers["tokenizer_2"]))
    return readers


def cut_prompts(config: RunConfig, readers: Sequence[TextReader]) -> list[dict[str, Any]]:
    """Return which prompts of a job are longer than a text encoder reads, as a sidecar records them.

    Counted are the tokens of the prompt itself and of the marks that the tokenizer adds. A template around the prompt
    is not counted; of HunyuanVideo 1.5's template, five more tokens follow the prompt.
    """
    from ..guidance.equations import needs_uncond  # here, because it imports torch

    prompts = {"prompt": config.prompt or ""}
    if any(map(needs_uncond, config.guidance.cfg_scales)):
        prompts["negative_prompt"] = config.negative_prompt
    cut = []
    for reader in readers:
        limit = reader.limit or config.sampling.max_sequence_length
        for field, text in prompts.items():
            read = _quoted(text) if reader.only_quoted else text
            if read is not None and (count := count_tokens(reader.tokenizer, read)) > limit:
                entry = {"field": field, "kept": limit, "tokens": count}
                cut.append(entry | ({} if reader.encoder is None else {"encoder": reader.encoder}))
    return cut


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Return the tokens of a prompt, with white space joined as pipelines do."""
    return len(tokenizer(" ".join(prompt.split()), verbose=False).input_ids)


def _quoted(prompt: str) -> str | None:
    """The text that the second encoder of HunyuanVideo 1.5 gets; None without quotes."""
    texts = dict.fromkeys(one or other for one, other in _QUOTED.findall(prompt))
    return ". ".join(f'Text "{text}"' for text in texts) + ". " if texts else None


def cut_warning(cut: Mapping[str, Any]) -> str:
    """Return the line that a person reads about one entry of `cut_prompts`."""
    if (encoder := cut.get("encoder")) is not None:
        quoted = " of text in quotes" if encoder == "ByT5" else ""
        return (
            f"{cut['field']}: {encoder}, the model's second text encoder, reads {cut['kept']} of its {cut['tokens']} "
            f"tokens{quoted} and ignores the rest; put what matters first, or shorten it"
        )
    return (
        f"{cut['field']}: the model reads {cut['kept']} of its {cut['tokens']} tokens and ignores the rest; shorten "
        "it, or raise sampling.max_sequence_length where the model allows it"
    )
