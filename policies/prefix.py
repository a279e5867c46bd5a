"""Several lines for one prompt: it is read once, and lines that have ended are computed no further."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

FEWER = 0.75
"""Share of the rows from which on down those that have ended are taken out of the cache: doing it copies the rest."""


def goes_on(model: Any) -> bool:
    """Say whether a causal language model of transformers can go on from what it has read."""
    return "past_key_values" in _takes(model)


def placed(model: Any, mask: Tensor) -> dict[str, Tensor]:
    """Return the place of each token in its text, (n, width), as the model takes it, from a mask that pads on the left.

    A model that takes none tells places from the mask.
    """
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if "position_ids" in _takes(model) else {}


def _takes(model: Any) -> Collection[str]:
    return inspect.signature(type(model).forward).parameters


def read_once(model: Any, ids: Tensor, mask: Tensor) -> Any:
    """Read the distinct ones of n texts, and return the cache of keys and values of all n; gradients go through it.

    Args:
        model: A causal language model of transformers that ``goes_on``.
        ids: Tokens, padded on the left, shape (n, width), width at least 1.
        mask: 1 where there is a token, 0 where there is padding, shape (n, width).
    """
    _, owner = torch.unique(ids.masked_fill(mask == 0, -1), dim=0, return_inverse=True)
    first = torch.full_like(owner, len(owner)).scatter_reduce(0, owner, torch.arange(len(owner)).to(owner), "amin")
    first = first[: int(owner.max()) + 1]
    told = {"attention_mask": mask[first], **placed(model, mask[first])}
    cache = model.base_model(input_ids=ids[first], use_cache=True, **told).past_key_values
    if len(first) < len(owner):
        cache.batch_select_indices(owner)
    return cache


@torch.no_grad()
def go_on(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    most: int,
    temperature: float,
    ends: Sequence[int],
    every_token: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """Draw what follows n texts, and return its tokens, the one that ends it included.

    Tokens are drawn from the model's own distribution, from torch's global generator of the device.

    Args:
        model: As for ``read_once``.
        ids: Tokens, padded on the left, shape (n, width), width at least 2.
        mask: 1 where there is a token, 0 where there is padding, shape (n, width).
        most: Tokens of an answer, at most.
        temperature: What logits are divided by; 0 takes the likeliest token.
        ends: Tokens that end an answer.
        every_token: Called before each token.

    Raises:
        RuntimeError: The model's probabilities are not finite.
    """
    cache, token = read_once(model, ids[:, :-1], mask[:, :-1]), ids[:, -1:]
    row, open_, stop = list(range(len(ids))), torch.ones_like(ids[:, 0], dtype=torch.bool), torch.tensor(list(ends))
    said: list[list[int]] = [[] for _ in row]
    for _ in range(most):
        every_token()
        place = {name: places[:, -1:] for name, places in placed(model, mask).items()}
        answer = model(input_ids=token, attention_mask=mask, past_key_values=cache, use_cache=True, **place)
        logits = answer.logits[:, -1].float()
        if temperature:
            token = torch.multinomial((logits / temperature).softmax(1), 1)
        else:
            token = logits.argmax(1, keepdim=True)
        for owner, drawn, still in zip(row, token[:, 0].tolist(), open_.tolist(), strict=True):
            if still:
                said[owner].append(drawn)
        open_ = open_ & ~torch.isin(token[:, 0], stop.to(token.device))
        left = int(open_.sum())
        if not left:
            break
        if left <= FEWER * len(row):
            kept = open_.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            row, open_ = [row[i] for i in kept.tolist()], open_[kept]
            token, mask = token[kept], mask[kept]
        mask = torch.cat([mask, torch.ones_like(token)], 1)
    return said
