"""Prompts that are longer than a text encoder reads, counted by the checkpoint's tokenizer alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.run import RunConfig


def cut_prompts(config: RunConfig, tokenizer: Any) -> list[dict[str, Any]]:
    """Return which prompts of a job are longer than `max_sequence_length`, as a sidecar records them.

    Counted are the tokens of the prompt itself and of the marks that the tokenizer adds. A template around the prompt
    is not counted; of HunyuanVideo 1.5's template, five more tokens follow the prompt.

    Args:
        tokenizer: the first one of the checkpoint. Encoders of pooled text (CLIP) and of quoted text (ByT5) have
            limits of their own.
    """
    from ..guidance.equations import needs_uncond  # here, because it imports torch

    limit = config.sampling.max_sequence_length
    prompts = {"prompt": config.prompt or ""}
    if any(map(needs_uncond, config.guidance.cfg_scales)):
        prompts["negative_prompt"] = config.negative_prompt
    counts = {field: count_tokens(tokenizer, text) for field, text in prompts.items()}
    return [{"field": field, "kept": limit, "tokens": count} for field, count in counts.items() if count > limit]


def count_tokens(tokenizer: Any, prompt: str) -> int:
    """Return the tokens of a prompt, with white space joined as pipelines do."""
    return len(tokenizer(" ".join(prompt.split()), verbose=False).input_ids)


def cut_warning(cut: Mapping[str, Any]) -> str:
    """Return the line that a person reads about one entry of `cut_prompts`."""
    return (
        f"{cut['field']}: the model reads {cut['kept']} of its {cut['tokens']} tokens and ignores the rest; shorten "
        "it, or raise sampling.max_sequence_length where the model allows it"
    )
