"""Several lines for one prompt: it is read once, and lines that have ended are computed no further."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from hawker.policies.attention import Prompts, attends_grouped

FEWER = 0.75
"""Share of the rows from which on down those that have ended are taken out of the cache: doing it copies the rest."""


AT_ONCE = 8
"""Rows of probabilities of all tokens that are looked at at once on a CPU: 2 MB of them, where tokens are 50,000."""

SHARED = 16
"""Tokens that all prompts must begin with to be read once for all of them: one more step has its own cost."""

RAREST = 0.003
"""Tokens less likely than this, and than a tenth of the likeliest, are not drawn (after epsilon sampling; Hewitt et al.
2022, arXiv 2210.15191): each is nearly nothing, together they put a word that belongs to no copy into many lines."""


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
    first, owner = _distinct(ids, mask)
    cache = _read(model, ids[first], mask[first])
    if len(first) < len(owner):
        cache.batch_select_indices(owner)
    return cache


def _distinct(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of n texts come first of those that are the same (P,), and for each text which of them it is."""
    _, owner = torch.unique(ids.masked_fill(mask == 0, -1), dim=0, return_inverse=True)
    first = torch.full_like(owner, len(owner)).scatter_reduce(0, owner, torch.arange(len(owner)).to(owner), "amin")
    first, order = first[: int(owner.max()) + 1].sort()  # in the order in which they come, which is not that of unique
    return first, order.argsort()[owner]


def _fork(model: Any, ids: Tensor, mask: Tensor) -> tuple[Any, Prompts | None]:
    """Read n texts, and return a cache to go on from, of what rows read from here on, and what stands before it.

    Where a model cannot look at both, the cache holds all, and nothing stands before it.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    first, owner = _distinct(ids, mask)
    cache = _read(model, ids[first], mask[first])
    if len(first) == len(owner):
        return cache, None
    if (
        ids.device.type == "cpu"
        and attends_grouped(model)
        and all(type(layer) is DynamicLayer for layer in cache.layers)
    ):
        return DynamicCache(), Prompts([(layer.keys, layer.values) for layer in cache.layers], mask[first] > 0, owner)
    cache.batch_select_indices(owner)
    return cache, None


def _read(model: Any, ids: Tensor, mask: Tensor) -> Any:
    """Read n texts, on a CPU what all begin with once; there reading takes as long as there are tokens."""
    from transformers.cache_utils import DynamicLayer

    shared = _shared(ids, mask) if len(ids) > 1 and ids.device.type == "cpu" else 0
    if shared >= SHARED:
        start = int(mask[0].argmax())
        one = torch.ones_like(mask[:1, :shared])
        cache = _step(model, ids[:1, start : start + shared], one)
        if all(type(layer) is DynamicLayer for layer in cache.layers):  # no window, no state of its own
            return _read_on(model, ids, mask, shared, cache)
    return _step(model, ids, mask)


def _read_on(model: Any, ids: Tensor, mask: Tensor, shared: int, cache: Any) -> Any:
    """Read the rest of n texts whose first ``shared`` tokens a cache of one row holds; see ``_read``."""
    column = torch.arange(ids.shape[1], device=ids.device)
    padding = (mask == 0).sum(1, keepdim=True)
    cache.batch_select_indices(torch.zeros(len(ids), dtype=torch.long, device=ids.device))
    # What is shared comes first, then the padding: where a key stands does not matter, only what place it was told.
    there = torch.where(column < shared, 1, (column >= padding + shared).to(mask.dtype))
    cache = _step(model, ids[:, shared:], there, cache)
    if bool((padding > 0).any()):
        begins = (column >= padding) & (column < padding + shared)
        back = torch.where(begins, column - padding, column)[:, None, :, None]
        for layer in cache.layers:
            layer.keys, layer.values = (part.take_along_dim(back, 2) for part in (layer.keys, layer.values))
    return cache


def _step(model: Any, ids: Tensor, mask: Tensor, cache: Any = None) -> Any:
    """Return the cache after tokens (n, w), the last of those that a mask (n, width) tells of."""
    told = {name: places[:, -ids.shape[1] :] for name, places in placed(model, mask).items()}
    answer = model.base_model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **told)
    return answer.past_key_values


def _shared(ids: Tensor, mask: Tensor) -> int:
    """Return how many tokens all of n texts begin with."""
    length = mask.sum(1)
    places = (ids.shape[1] - length)[:, None] + torch.arange(int(length.min()), device=ids.device)
    begun = ids.gather(1, places)
    return int((begun == begun[:1]).all(0).int().cumprod(0).sum())


def _drawn(chance: Tensor) -> Tensor:
    """Return a token for each row of probabilities (n, V), (n, 1), none of them rare (``RAREST``).

    The smallest of exponential times at these rates, as torch.multinomial draws; but it waits for the whole vocabulary.

    Raises:
        RuntimeError: Probabilities are not finite.
    """
    most = chance.amax(1, keepdim=True)
    if not bool(most.isfinite().all()):
        raise RuntimeError("probability tensor is not finite")  # as torch.multinomial calls it
    usual = chance >= (most / 10).clamp(max=RAREST)
    rates = chance[usual]
    early = torch.zeros_like(chance).masked_scatter_(usual, rates / torch.empty_like(rates).exponential_())
    return early.argmax(1, keepdim=True)


@torch.no_grad()
def go_on(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    most: int,
    temperature: float,
    ends: Sequence[int],
    every_token: Callable[[], None] = lambda: None,
    ended: Callable[[int, list[int]], None] = lambda row, said: None,
) -> list[list[int]]:
    """Draw what follows n texts, and return its tokens, the one that ends it included.

    Tokens are drawn from the model's own distribution without what is rare (``RAREST``), from torch's global generator
    of the device.

    Args:
        model: As for ``read_once``.
        ids: Tokens, padded on the left, shape (n, width), width at least 2.
        mask: 1 where there is a token, 0 where there is padding, shape (n, width).
        most: Tokens of an answer, at most.
        temperature: What logits are divided by; 0 takes the likeliest token.
        ends: Tokens that end an answer.
        every_token: Called before each token.
        ended: Called with a text's number and its answer as soon as a token has ended it.

    Raises:
        RuntimeError: The model's probabilities are not finite.
    """
    (cache, prompts), token = _fork(model, ids[:, :-1], mask[:, :-1]), ids[:, -1:]
    row, open_, stop = list(range(len(ids))), torch.ones_like(ids[:, 0], dtype=torch.bool), torch.tensor(list(ends))
    said: list[list[int]] = [[] for _ in row]
    read = 0 if prompts is None else ids.shape[1] - 1  # tokens that the cache does not hold
    for _ in range(most):
        every_token()
        place = {name: places[:, -1:] for name, places in placed(model, mask).items()}
        with nullcontext() if prompts is None else prompts.at_hand():
            answer = model(
                input_ids=token, attention_mask=mask[:, read:], past_key_values=cache, use_cache=True, **place
            )
        token = _next(answer.logits[:, -1], temperature)
        for owner, drawn, still in zip(row, token[:, 0].tolist(), open_.tolist(), strict=True):
            if still:
                said[owner].append(drawn)
                if drawn in ends:
                    ended(owner, said[owner])
        open_ = open_ & ~torch.isin(token[:, 0], stop.to(token.device))
        left = int(open_.sum())
        if not left:
            break
        if left <= FEWER * len(row):
            kept = open_.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            if prompts is not None:
                prompts.keep(kept)
            row, open_ = [row[i] for i in kept.tolist()], open_[kept]
            token, mask = token[kept], mask[kept]
        mask = torch.cat([mask, torch.ones_like(token)], 1)
    return said


def _next(logits: Tensor, temperature: float) -> Tensor:
    """Return a token for each row of logits (n, V), (n, 1); on a CPU a few rows at once, which its own memory holds."""
    if not temperature:
        return logits.argmax(1, keepdim=True)
    rows = AT_ONCE if logits.device.type == "cpu" else len(logits)
    return torch.cat([_drawn((some.float() / temperature).softmax(1)) for some in logits.split(rows)])
