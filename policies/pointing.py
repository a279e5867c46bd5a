"""Scores of candidates: one dense product with every item's key, and a gradient that does not go back the same way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def candidate_scores(query: Tensor, keys: Tensor, bias: Tensor, candidates: Tensor) -> Tensor:
    """Return query . key + bias of each page's candidates, shape (B, C).

    Scoring all items in one product and gathering the candidates' scores is several times as fast as gathering their
    keys. In the gradient the opposite holds for queries: they are weighted sums of few keys.

    Args:
        query: Shape (B, h).
        keys: Of every item, shape (I, h).
        bias: Of every item, shape (I,).
        candidates: Rows of ``keys``, shape (B, C), int64.
    """
    if query.device.type != "cpu":  # what is slow there is fast elsewhere, and autocast is on
        return torch.addmm(bias, query, keys.T).gather(1, candidates)
    scores: Tensor = _CandidateScores.apply(query, keys, bias, candidates)  # type: ignore[no-untyped-call]
    return scores


class _CandidateScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, bias: Tensor, candidates: Tensor) -> Tensor:
        ctx.save_for_backward(query, keys, candidates)
        scores = (query @ keys.T).gather(1, candidates)
        return scores.add_(bias.index_select(0, candidates.flatten()).reshape(candidates.shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, keys, candidates = ctx.saved_tensors
        of_query = torch.nn.functional.embedding_bag(candidates, keys, per_sample_weights=gradient, mode="sum")
        spread = gradient.new_zeros(len(query), len(keys)).scatter_add_(1, candidates, gradient)
        return of_query, spread.T @ query, spread.sum(0), None
