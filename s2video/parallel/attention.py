"""Self-attention over tokens that are sharded across ranks (DeepSpeed-Ulysses).

Around the attention itself, token shards are traded for head shards: every rank computes whole rows of the softmax
for its heads. Token counts and head counts need not divide by the number of ranks: shards are uneven, some may be
empty, and nothing is padded, so nothing can leak into a softmax. Knows no model.

Dimension letters as in `collectives`.
"""

from dataclasses import dataclass

from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from ..geometry import Shard, split_evenly
from .collectives import heads_from_tokens, tokens_from_heads
from .mesh import Axis


@dataclass(frozen=True)
class AttentionPlan:
    """Who holds which tokens while blocks run, and which axis trades them for heads."""

    axis: Axis
    tokens: tuple[Shard, ...]


def sharded_attention(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, *, backend: str | None) -> Tensor:
    """softmax(QKᵀ/√D)·V over all tokens: [B, S_local, H, D] each -> [B, S_local, H, D].

    Args:
        backend: name of a backend of diffusers' attention dispatcher; None for its default.
    """
    if plan.axis.size == 1:
        return _attend(query, key, value, backend)
    heads = split_evenly(query.shape[2], plan.axis.size)
    query, key, value = heads_from_tokens((query, key, value), plan.tokens, heads, plan.axis).unbind(0)
    # where there are more ranks than heads, this one may hold none
    output = _attend(query, key, value, backend) if query.numel() else query
    return tokens_from_heads(output, plan.tokens, heads, plan.axis)


def _attend(query: Tensor, key: Tensor, value: Tensor, backend: str | None) -> Tensor:
    return dispatch_attention_fn(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, backend=backend)
