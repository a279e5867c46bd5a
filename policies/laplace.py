"""The posterior of a logistic regression with weights for all items and one of each item's own, by Newton's method.

    logit P(y = 1) = u' W z[item] + own[item] + effects . rest        a row is (u, rest), its first entry 1

Items' own weights meet only in the weights that all share: they are eliminated (a Schur complement), so that the cost
grows with the items and not with their square. What rows of an item share is never formed for each row.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

BROAD = 10.0
"""Prior variance of the constant and of the effects of affinity and position, in squared logits: hardly any prior."""

_CHUNK = 8_192  # rows at once: the working set stays in the cache
_BLOCK = 32  # rows of an item that are multiplied together
_MOST_STEPS = 50
_ENOUGH = 1e-4  # twice the nats of log posterior that another of Newton's steps would gain


@dataclass(frozen=True)
class Prior:
    """Prior variances in squared logits, each positive.

    Attributes:
        main: Of a principal component's effect, the shopper's or the item's.
        product: Of the product of two.
        own: Of what is an item's own, beyond its vector.
    """

    main: float = 0.01
    product: float = 0.001
    own: float = 0.1


@dataclass(frozen=True)
class Design:
    """The regression's rows, item by item, in N blocks of T rows of one item that are filled up with nothing.

    Attributes:
        rows: Shape (N, T, E), float32; the first P entries of a row are u, the first of them 1.
        y: Outcome, 0 or 1, shape (N, T).
        real: 1 where a row is one, 0 where it fills up, shape (N, T).
        owner: The item of each block, shape (N,).
        items: Each item's z, shape (I, Q), float64.
        width: P.
    """

    rows: Tensor
    y: Tensor
    real: Tensor
    owner: Tensor
    items: Tensor
    width: int

    @classmethod
    def lay_out(cls, features: Tensor, y: Tensor, item: Tensor, items: Tensor, width: int) -> Design:
        """Lay out rows (n, E) with outcomes and items (n,), in any order."""
        order = item.argsort(stable=True)
        counts = item.bincount(minlength=len(items))
        blocks = -(-counts // _BLOCK)
        within = torch.arange(len(item)) - (counts.cumsum(0) - counts)[item[order]]
        slot = (blocks.cumsum(0) - blocks)[item[order]] * _BLOCK + within
        size = int(blocks.sum()) * _BLOCK
        rows, target, real = torch.zeros(size, features.shape[1]), torch.zeros(size), torch.zeros(size)
        rows[slot], target[slot], real[slot] = features[order], y[order], 1.0
        owner = torch.arange(len(items)).repeat_interleave(blocks)
        shape = (-1, _BLOCK)
        return cls(rows.reshape(*shape, rows.shape[1]), target.reshape(shape), real.reshape(shape), owner, items, width)


@dataclass(frozen=True)
class Weights:
    """Weights (P, Q), effects (E - P,) and items' own (I,)."""

    weights: Tensor
    effects: Tensor
    own: Tensor

    def coefficients(self, items: Tensor) -> Tensor:
        """Return each item's coefficients of a row, shape (I, E)."""
        by_u = items @ self.weights.T
        by_u[:, 0] += self.own
        return torch.cat([by_u, self.effects.expand(len(items), -1)], 1)

    def moved(self, step: Weights, share: float) -> Weights:
        """Return the weights after a share of a step."""
        return Weights(*(getattr(self, f.name) + share * getattr(step, f.name) for f in fields(self)))

    def dot(self, other: Weights) -> float:
        """Return the sum of the products of all entries."""
        return sum(float((getattr(self, f.name) * getattr(other, f.name)).sum()) for f in fields(self))


def likelihood(design: Design, coefficients: Tensor, derivatives: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the negative log-likelihood, and each item's sums of residual x row (I, E) and information (I, E, E)."""
    n_items, e = coefficients.shape
    loss, slope = coefficients.new_zeros(()), torch.zeros_like(coefficients)
    information = coefficients.new_zeros(n_items, e, e) if derivatives else coefficients.new_zeros(0)
    single = coefficients.float()
    for start in range(0, len(design.owner), _CHUNK // _BLOCK):
        part = slice(start, start + _CHUNK // _BLOCK)
        rows, y, real, owner = design.rows[part], design.y[part], design.real[part], design.owner[part]
        logit = (rows @ single[owner, :, None]).squeeze(-1)
        loss += ((torch.nn.functional.softplus(logit) - y * logit) * real).sum(dtype=loss.dtype)
        if derivatives:
            chance = logit.sigmoid()
            slope.index_add_(0, owner, (((y - chance) * real)[:, None] @ rows).squeeze(1).double())
            weight = chance * (1 - chance) * real
            information.index_add_(0, owner, (rows.transpose(1, 2) @ (rows * weight[:, :, None])).double())
    return loss, slope, information


def find_mode(design: Design, prior: Prior, start: Weights | None) -> tuple[Weights, Curvature]:
    """Climb to the posterior's mode by Newton's method; return it and the curvature one step before it."""
    items, p = design.items, design.width
    q, e = items.shape[1], design.rows.shape[2]
    penalty = items.new_full((p, q), 1 / prior.product)
    penalty[0], penalty[:, 0] = 1 / prior.main, 1 / prior.main
    penalty[0, 0] = 1 / BROAD
    penalties = Weights(penalty, items.new_full((e - p,), 1 / BROAD), items.new_full((len(items),), 1 / prior.own))
    state = start or Weights(*(torch.zeros_like(getattr(penalties, f.name)) for f in fields(Weights)))
    before, step, share = torch.inf, state, 1.0
    for _ in range(_MOST_STEPS):
        loss, slope, information = likelihood(design, state.coefficients(items), True)
        shrunk = Weights(*(getattr(penalties, f.name) * getattr(state, f.name) for f in fields(Weights)))
        objective = float(loss) + state.dot(shrunk) / 2
        if objective > before + 1e-6 * abs(before) and share > 1e-3:  # too far
            state, share = state.moved(step, -share / 2), share / 2
            continue
        before, share = objective, 1.0
        reduced = Curvature.of(design, information, penalties)
        step, gain = reduced.step(slope, shrunk)
        state = state.moved(step, 1.0)
        if gain < _ENOUGH:
            break
    return state, reduced


@dataclass(frozen=True)
class Curvature:
    """The posterior's precision with the items' own weights eliminated, which it is diagonal in."""

    items: Tensor
    root: Tensor  # Cholesky factor of what is left, (P Q + E - P, P Q + E - P)
    mean_row: Tensor  # (I, E)
    precision: Tensor  # (I,)

    @classmethod
    def of(cls, design: Design, information: Tensor, penalties: Weights) -> Curvature:
        """Build it from each item's information (I, E, E) and the prior's precisions."""
        items, p = design.items, design.width
        q, e = items.shape[1], information.shape[1]
        precision = information[:, 0, 0] + penalties.own
        mean_row = information[:, 0] / precision[:, None]
        left = information - mean_row[:, :, None] * information[:, 0, None, :]
        whole = items.new_zeros(p * q + e - p, p * q + e - p)
        shared = items.new_zeros(p * p, q * q)
        for start in range(0, len(items), _CHUNK):
            part = slice(start, start + _CHUNK)
            z = items[part]
            shared += left[part, :p, :p].reshape(len(z), -1).T @ (z[:, :, None] * z[:, None, :]).reshape(len(z), -1)
        whole[: p * q, : p * q] = shared.reshape(p, p, q, q).transpose(1, 2).reshape(p * q, p * q)
        whole[: p * q, p * q :] = torch.einsum("ipv,iq->pqv", left[:, :p, p:], items).reshape(p * q, -1)
        whole[p * q :, : p * q] = whole[: p * q, p * q :].T
        whole[p * q :, p * q :] = left[:, p:, p:].sum(0)
        whole.diagonal().add_(torch.cat([penalties.weights.flatten(), penalties.effects]))
        return cls(items, torch.linalg.cholesky(whole), mean_row, precision)

    def step(self, slope: Tensor, shrunk: Weights) -> tuple[Weights, float]:
        """Return Newton's step from the likelihood's slope by item (I, E) and the prior's, and twice what it gains."""
        p, q = shrunk.weights.shape
        gradient = Weights(
            slope[:, :p].T @ self.items - shrunk.weights, slope[:, p:].sum(0) - shrunk.effects, slope[:, 0] - shrunk.own
        )
        left = gradient.own[:, None] * self.mean_row
        weights, effects = gradient.weights - left[:, :p].T @ self.items, gradient.effects - left[:, p:].sum(0)
        solved = torch.cholesky_solve(torch.cat([weights.flatten(), effects])[:, None], self.root).squeeze(1)
        weights, effects = solved[: p * q].reshape(p, q), solved[p * q :]
        drag = (self.mean_row[:, :p] * (self.items @ weights.T)).sum(1) + self.mean_row[:, p:] @ effects
        step = Weights(weights, effects, gradient.own / self.precision - drag)
        return step, gradient.dot(step)
