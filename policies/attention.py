"""Attention on a CPU that reads keys and values once for all the query heads that share them.

torch's own kernel wants a copy of keys and values for each query head, and takes most of its time on the way back,
where an answer of a few tokens looks at a prompt of hundreds: two matrix products a layer are several times as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

NAME = "hawker_grouped"
"""The implementation's name among those of transformers."""


def use_grouped(model: Any) -> None:
    """Let a causal language model of transformers attend so on a CPU, if it attends by torch's own kernel there."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def _forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Return what transformers' own does for query (B, H, Q, D), key and value (B, G, K, D): (B, Q, H, D).

    Only what that is slow at is done otherwise: several queries at once, of more heads than keys have, under a mask of
    truth values.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    shared = query.device.type == "cpu" and query.shape[2] > 1 and query.shape[1] > key.shape[1]
    plain = not options.get("dropout") and options.get("scaling") is not None
    plain &= all(options.get(name) is None for name in ("position_bias", "cache", "softcap"))
    seen = attention_mask
    if not (shared and plain) or seen is None or seen.dtype != torch.bool or seen.shape[1] != 1:
        found, none = sdpa_attention_forward(module, query, key, value, seen, **options)
        return found, none
    scaled = query * options["scaling"]
    if torch.is_grad_enabled():
        # What it multiplies is kept for the way back, not the weights of every pair of tokens.
        out = checkpoint(grouped_attention, scaled, key, value, seen, use_reentrant=False)
    else:
        out = grouped_attention(scaled, key, value, seen)
    return out.transpose(1, 2).contiguous(), None


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """Return the mean of the values that each query sees, weighted by softmax(query . key), shape (B, H, Q, D).

    Args:
        query: Scaled queries, shape (B, H, Q, D); H / G of their heads share a head of keys.
        key: Keys, shape (B, G, K, D).
        value: Values, shape (B, G, K, D).
        seen: Which keys a query sees, shape (B, 1, Q, K); one that sees none gets the mean of all.
    """
    batch, heads, queries, width = query.shape
    groups, keys = key.shape[1:3]
    unseen = torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, torch.finfo(query.dtype).min)
    unseen = unseen.expand(-1, heads, -1, -1).reshape(batch * groups, -1, keys)
    scores = torch.baddbmm(unseen, query.reshape(batch * groups, -1, width), key.flatten(0, 1).transpose(1, 2))
    weights = scores.softmax(-1)  # in bfloat16, too, it adds up in float32
    return (weights @ value.flatten(0, 1)).view(batch, heads, queries, width)
