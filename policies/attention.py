"""Attention on a CPU that reads keys and values once for all the query heads that share them.

torch's own kernel wants a copy of keys and values for each query head, and takes most of its time on the way back,
where an answer of a few tokens looks at a prompt of hundreds: two matrix products a layer are several times as fast.
And where many answers go on from one prompt, its keys and values need not be there for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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


def attends_grouped(model: Any) -> bool:
    """Say whether a causal language model of transformers attends so."""
    return bool(model.config._attn_implementation == NAME)


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
    if (prompts := _PROMPTS.get()) is not None:
        if not plain:
            raise NotImplementedError(f"attention to prompts that rows share, with {sorted(options)}")
        return prompts.attend(module.layer_idx, query * options["scaling"], key, value), None
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


_PROMPTS: ContextVar[Prompts | None] = ContextVar("prompts", default=None)
"""What comes before the keys that a model has, for whoever reads a token a row."""


class Prompts:
    """What rows of answers go on from, fewer prompts than rows: their keys and values, which are not copied for a row.

    Args:
        layers: Keys and values of each layer, (P, G, W, D) each.
        seen: Which of a prompt's tokens are none of the padding, shape (P, W).
        owner: Each row's prompt, shape (n,).
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]], seen: Tensor, owner: Tensor) -> None:
        self._layers = [(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in layers]
        self._prompts, self._groups, _, _ = layers[0][0].shape
        self._unseen = torch.zeros_like(seen, dtype=layers[0][0].dtype)
        self._unseen.masked_fill_(~seen, torch.finfo(self._unseen.dtype).min)
        self._own(owner)

    def keep(self, rows: Tensor) -> None:
        """Keep some rows, by number."""
        self._own(self._owner[rows])

    def _own(self, owner: Tensor) -> None:
        """Give each row a place among those of its prompt; all prompts have as many places."""
        self._owner, order = owner, owner.argsort(stable=True)
        count = torch.bincount(owner, minlength=self._prompts)
        first = (count.cumsum(0) - count)[owner[order]]
        self._most = int(count.max())
        self._place = torch.empty_like(owner)
        self._place[order] = owner[order] * self._most + torch.arange(len(owner), device=owner.device) - first

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Let a model that attends by this module, and reads a token for each row, see its prompt, too."""
        token = _PROMPTS.set(self)
        try:
            yield
        finally:
            _PROMPTS.reset(token)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the mean of the values of a row's prompt and its own, weighted by softmax(query . key), (n, 1, H, D).

        Args:
            layer: Which layer asks.
            query: Scaled queries, shape (n, H, 1, D).
            key: The rows' own keys, all of them seen, shape (n, G, T, D).
            value: Their values, shape (n, G, T, D).
        """
        keys, values = self._layers[layer]
        rows, heads, _, width = query.shape
        own = (query.view(rows, self._groups, -1, width) @ key.transpose(2, 3)).flatten(1, 2)
        shared = self._grouped(query[:, :, 0])
        before = self._unseen[:, None, None].expand(-1, self._groups, shared.shape[1], -1).flatten(0, 1)
        scores = torch.cat([torch.baddbmm(before, shared, keys.transpose(1, 2)), self._grouped(own)], 2)
        weights = scores.softmax(2)
        told = self._of_rows(weights[:, :, : keys.shape[1]] @ values)
        own = self._of_rows(weights[:, :, keys.shape[1] :]).view(rows, self._groups, -1, key.shape[2])
        return (told + (own @ value).view(rows, heads, width))[:, None]

    def _grouped(self, each: Tensor) -> Tensor:
        """Return what rows have (n, H, m) by prompt and head of keys, (P G, places x H / G, m)."""
        _, heads, width = each.shape
        placed = each.new_zeros(self._prompts * self._most, heads, width).index_copy_(0, self._place, each)
        placed = placed.view(self._prompts, self._most, self._groups, -1, width).transpose(1, 2)
        return placed.reshape(self._prompts * self._groups, -1, width)

    def _of_rows(self, grouped: Tensor) -> Tensor:
        """Return the reverse of ``_grouped``, (n, H, m)."""
        width = grouped.shape[-1]
        placed = grouped.view(self._prompts, self._groups, self._most, -1, width).transpose(1, 2)
        return placed.reshape(self._prompts * self._most, -1, width).index_select(0, self._place)
