"""Clicks by Bayesian logistic regression: what bandits rank by.

    logit P(click) = u' W z + own[item] + c affinity + effects of the position, and of an ad, an offer and copy

with u = (1, principal components of the shopper's features) and z = (1, principal components of the item's vector), so
that W holds effects of the item, of the shopper and of their products. Each weight has a normal prior; the posterior is
a Laplace approximation. Positions enter as dummies, so that an item is not paid for where it stood.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from hawker.policies.laplace import Design, Prior, Weights, find_mode, likelihood
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError

SHOPPER_RANK, ITEM_RANK = 12, 32
"""Principal components kept of the shoppers' features and of the items' vectors, at most."""

POSITIONS = 32
"""Positions with an effect of their own; what stands further down shares the last."""

TUNING_ROWS = 500_000
"""Rows that `tune` looks at, at most."""

_GRID = (0.00001, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.1, 1.0)
_CHUNK = 8_192  # rows at once: the working set stays in the cache
_DENSE = 32  # catalogues of up to this many times the candidates are scored whole: one product beats many gathers


@dataclass(frozen=True)
class ClickRows:
    """P pages and the n impressions on them; what the log does not record is None.

    The fields are those of the same names in `hawker.simulators.rows.Rows`, from which they may be taken.

    Attributes:
        shopper: Encoded shopper features of each page, shape (P, D).
        page: The page of each impression, ascending, shape (n,). A shopper's pages stand together.
        item: Catalog index, shape (n,).
        position: Position on the page, from 0, shape (n,).
        affinity: The shopper's affinity with the item, shape (n,).
        clicked: 1 where it was clicked, else 0, shape (n,).
        line: Number of the line of copy shown with it, -1 for none, shape (n,).
        offer: Discount tier, 0 for none, shape (n,).
        ad: 1 where it was shown as an ad, shape (n,).
    """

    shopper: Tensor
    page: Tensor
    item: Tensor
    position: Tensor
    affinity: Tensor
    clicked: Tensor
    line: Tensor | None = None
    offer: Tensor | None = None
    ad: Tensor | None = None

    @classmethod
    def from_impressions(cls, impressions: pd.DataFrame, builder: ContextBuilder) -> ClickRows:
        """Encode a log's impressions; of the lines only whether there was one.

        Raises:
            InputError: There is no impression, or one of an item that the catalog lacks.
        """
        if impressions.empty:
            raise InputError("no impressions to learn from", where="impressions")
        shopper = pd.factorize(impressions["shopper_id"])[0]
        visit, page = pd.factorize(impressions["visit_id"])[0], impressions["page"].to_numpy(np.int64)
        order = np.lexsort((impressions["position"].to_numpy(np.int64), page, visit, shopper))
        rows, visit, page = impressions.iloc[order], visit[order], page[order]
        head = np.append(True, (visit[1:] != visit[:-1]) | (page[1:] != page[:-1]))
        item = builder.catalog.index(rows["item_id"], "impressions")

        def column(name: str, kind: type = np.float32) -> Tensor | None:
            return torch.from_numpy(rows[name].to_numpy(kind, copy=True)) if name in rows else None

        position, clicked = column("position", np.int64), column("clicked")
        assert position is not None
        assert clicked is not None
        return cls(
            shopper=torch.from_numpy(builder.encode_shoppers(rows[head])),
            page=torch.from_numpy(np.cumsum(head) - 1),
            item=torch.from_numpy(item),
            position=position,
            affinity=torch.from_numpy(builder.own_affinity(rows, item)),
            clicked=clicked,
            line=torch.from_numpy(np.where(rows["copy"].fillna("") != "", 0, EMPTY)) if "copy" in rows else None,
            offer=column("offer", np.int64),
            ad=torch.from_numpy((rows["placement"] == "ad").to_numpy(np.float32)) if "placement" in rows else None,
        )

    def only(self, rows: Tensor) -> ClickRows:
        """Return the impressions of those numbers, or those where a mask (n,) is True, of the same pages."""
        columns = [field.name for field in fields(self) if field.name != "shopper"]
        return replace(self, **{c: value[rows] for c in columns if (value := getattr(self, c)) is not None})


@dataclass(frozen=True)
class Basis:
    """The principal components of some features, scaled together to a mean variance of 1.

    Attributes:
        centre: Mean of the features, shape (D,).
        axes: Shape (D, rank).
    """

    centre: Tensor
    axes: Tensor

    @classmethod
    def fit(cls, features: Tensor, spread: npt.NDArray[np.float32], rank: int) -> Basis:
        """Find the first ``rank`` components, or all that vary, of features (n, D) divided by their spread (D,)."""
        scale = torch.from_numpy(np.array(spread)).to(features)
        centre = features.double().mean(0).to(features)
        scaled = ((features - centre) / scale).double()
        values, vectors = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
        kept = min(rank, int((values > max(1e-6 * float(values.sum()), 1e-9)).sum()))
        values, vectors = values[len(values) - kept :], vectors[:, len(values) - kept :]
        return cls(centre, (vectors / scale[:, None] / values.mean().sqrt()).to(features))

    def project(self, features: Tensor) -> Tensor:
        """Return 1 and the components of features (n, D), shape (n, 1 + rank)."""
        return torch.cat([features.new_ones(len(features), 1), (features - self.centre) @ self.axes], 1)


@dataclass(frozen=True)
class ClickModel:
    """Bayesian logistic regression of clicks, fitted on a log.

    With P entries of u, Q of z and E of a row (u, affinity, position and the rest). Given the weights that all items
    share, an item's own weight is normal, and falls by ``mean_row . change`` where the logit by those weights rises:
    the covariance of all weights, with one for each item among them, is kept whole at the cost of a few per item.

    Attributes:
        basis: Turns shopper features into u.
        items: Each item's z, shape (I, Q), float64; so are all that follow.
        weights: Posterior mean of W, shape (P, Q).
        effects: Posterior mean of the effects beside it, affinity first, shape (E - P,).
        own: Posterior mean of the items' own weights, shape (I,).
        covariance: Of W, row by row, and the effects, shape (P Q + E - P, P Q + E - P).
        mean_row: Each item's rows in the log, averaged by their information and shrunk, shape (I, E).
        precision: Of each item's own weight given the others, shape (I,).
        affinity_unit: What affinities are multiplied by; 0 where the log records none.
        prior: The prior it was fitted with.

    References:
        Laplace approximation: Chapelle and Li (2011), An Empirical Evaluation of Thompson Sampling, algorithm 3, but
        with the whole covariance. Weights for all items and weights of each: the hybrid model of Li et al. (2010).
    """

    basis: Basis
    items: Tensor
    weights: Tensor
    effects: Tensor
    own: Tensor
    covariance: Tensor
    mean_row: Tensor
    precision: Tensor
    affinity_unit: float
    prior: Prior

    @classmethod
    def fit(cls, rows: ClickRows, builder: ContextBuilder, prior: Prior | None = None) -> ClickModel:
        """Fit the model.

        Args:
            rows: The log.
            builder: The shop's contexts, as the rows were encoded by.
            prior: Prior variances; by default what `tune` finds.
        """
        prior = tune(rows, builder) if prior is None else prior
        frame = _Frame.fit(rows, builder)
        mode, curvature = find_mode(frame.design(rows), prior, None)
        return cls(
            basis=frame.basis,
            items=frame.items,
            weights=mode.weights,
            effects=mode.effects,
            own=mode.own,
            covariance=torch.cholesky_inverse(curvature.root),
            mean_row=curvature.mean_row,
            precision=curvature.precision,
            affinity_unit=frame.affinity_unit,
            prior=prior,
        )

    def logit(self, context: Context[Tensor]) -> Tensor:
        """Return the posterior mean of the logit of each candidate at the first position, shape (B, C), float64."""
        u, affinity = self.row(context)
        table = (self.items @ self.weights.T).to(u)
        table[:, 0] += self.own.to(u)
        return _pick(u, table, context.candidates) + affinity * self.effects[0].to(u)

    def variance(self, context: Context[Tensor]) -> Tensor:
        """Return the posterior variance of those logits, shape (B, C), float64."""
        u, affinity = self.row(context)
        by_shopper, by_affinity = (table.to(u) for table in self._variance_tables)
        first, second = torch.tril_indices(u.shape[1], u.shape[1], device=u.device)
        variance = _pick(u[:, first] * u[:, second], by_shopper, context.candidates)
        if self.affinity_unit:
            slope = _pick(u, by_affinity, context.candidates)
            at = -len(self.effects)
            variance = variance + affinity * (slope + affinity * self.covariance[at, at].to(u))
        return variance.clamp(min=0.0)

    def draw(self, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw whole models from the posterior.

        Returns:
            Each item's coefficients of u, shape (draws, I, P), and that of affinity, shape (draws,); float32.
        """
        p, q, n_items = *self.weights.shape, len(self.items)
        root = torch.linalg.cholesky(self.covariance)
        noise = torch.randn(draws, len(root), generator=generator, dtype=root.dtype)
        change = noise @ root.T
        shared = change[:, : p * q].reshape(draws, p, q) @ self.items.T  # (draws, P, I)
        drag = torch.einsum("npi,ip->ni", shared, self.mean_row[:, :p]) + change[:, p * q :] @ self.mean_row[:, p:].T
        spread = torch.randn(draws, n_items, generator=generator, dtype=root.dtype) * self.precision.rsqrt()
        table = (self.weights @ self.items.T + shared).transpose(1, 2).contiguous()
        table[:, :, 0] += self.own + spread - drag
        return table.float(), (self.effects[0] + change[:, p * q]).float()

    def row(self, context: Context[Tensor]) -> tuple[Tensor, Tensor]:
        """Return u (B, P) and the affinities in the unit of the fit (B, C), float64."""
        # Single precision would break the ties of equal items by how large a batch is.
        device = context.shopper.device
        basis = Basis(self.basis.centre.to(device), self.basis.axes.to(device))
        return basis.project(context.shopper).double(), context.affinity.double() * self.affinity_unit

    @cached_property
    def _variance_tables(self) -> tuple[Tensor, Tensor]:
        """Return each item's coefficients of u_k u_l, k >= l, shape (I, P (P + 1) / 2), and of affinity u_k, (I, P)."""
        (p, q), e = self.weights.shape, self.mean_row.shape[1]
        shared = self.covariance[: p * q, : p * q].reshape(p, q, p, q).transpose(1, 2).reshape(p * p, q * q)
        cross = self.covariance[: p * q, p * q :].reshape(p, q, e - p)
        first, second = torch.tril_indices(p, p)
        twice = 2.0 - (first == second).double()
        by_shopper, by_affinity = [], []
        for start in range(0, len(self.items), _CHUNK):
            part = slice(start, start + _CHUNK)
            z, mean = self.items[part], self.mean_row[part]
            # the variance of a row's logit, as a quadratic form of the row, if the item's own weight were known
            form = z.new_empty(len(z), e, e)
            form[:, :p, :p] = ((z[:, :, None] * z[:, None, :]).reshape(len(z), -1) @ shared.T).reshape(-1, p, p)
            form[:, :p, p:] = torch.einsum("iq,pqv->ipv", z, cross)
            form[:, p:, :p] = form[:, :p, p:].transpose(1, 2)
            form[:, p:, p:] = self.covariance[p * q :, p * q :]
            # a row's first entry is 1: subtracting the mean row from it is a linear map
            pull = torch.einsum("ikl,il->ik", form, mean)
            form[:, 0, :] -= pull
            form[:, :, 0] -= pull
            form[:, 0, 0] += torch.einsum("ik,ik->i", pull, mean) + 1 / self.precision[part]
            by_shopper.append(form[:, first, second] * twice)
            by_affinity.append(2.0 * form[:, :p, p])
        return torch.cat(by_shopper), torch.cat(by_affinity)


def tune(rows: ClickRows, builder: ContextBuilder) -> Prior:
    """Choose the prior by the log loss on held-out pages of the same log, one variance after the other.

    A fifth of the pages is held out, every fifth thousandth of the log, so that nearly all pages of a shopper stand on
    the same side. Logs too small to hold anything out keep the default.
    """
    stretch = rows.page * 1_000 // len(rows.shopper)
    kept = stretch // 5 % -(-len(rows.page) // TUNING_ROWS) == 0
    held = kept & (stretch % 5 == 4)
    train = kept & ~held
    if not bool(held.any()) or not bool(train.any()):
        return Prior()
    frame = _Frame.fit(rows, builder)
    design, judge = frame.design(rows.only(train)), frame.design(rows.only(held))
    losses: dict[Prior, float] = {}
    start: Weights | None = None
    best, tried = Prior(), None
    while tried != best:
        tried = best
        for name in ("own", "main", "product"):
            for value in _GRID:
                prior = replace(best, **{name: value})
                if prior not in losses:
                    start = find_mode(design, prior, start)[0]
                    losses[prior] = float(likelihood(judge, start.coefficients(design.items), False)[0])
            best = min(losses, key=lambda prior: losses[prior])
    return best


def _pick(features: Tensor, table: Tensor, candidates: Tensor) -> Tensor:
    """Return features (B, F) . table[candidates], from a table (I, F) and candidates (B, C): shape (B, C)."""
    places = candidates.long()
    if len(table) <= _DENSE * places.shape[1]:
        return (features @ table.T).gather(1, places)
    step = max(1, 64 * _CHUNK // places.shape[1] // table.shape[1])
    parts = zip(features.split(step), places.split(step), strict=True)
    return torch.cat([(table[place] @ some[:, :, None]).squeeze(-1) for some, place in parts])


@dataclass(frozen=True)
class _Frame:
    """How logged rows become the regression's rows; learned from all of a log before it is split."""

    basis: Basis
    items: Tensor
    affinity_unit: float
    positions: int

    @classmethod
    def fit(cls, rows: ClickRows, builder: ContextBuilder) -> _Frame:
        vectors = torch.from_numpy(np.array(builder.catalog.vectors))
        items = Basis.fit(vectors, builder.catalog.spread, ITEM_RANK).project(vectors)
        basis = Basis.fit(rows.shopper.cpu(), builder.shopper.spread, SHOPPER_RANK)
        spread = float(rows.affinity.double().std(correction=0))
        positions = min(int(rows.position.max()), POSITIONS - 1)
        return cls(basis, items.double(), 1 / spread if spread > 1e-9 else 0.0, positions)

    def design(self, rows: ClickRows) -> Design:
        """Return the regression's rows of logged ones."""
        u = self.basis.project(rows.shopper.cpu())
        features = torch.cat([u[rows.page.cpu()], self._beside(rows)], 1)
        return Design.lay_out(features, rows.clicked.cpu().float(), rows.item.cpu(), self.items, u.shape[1])

    def _beside(self, rows: ClickRows) -> Tensor:
        """Return affinity, position dummies but the first, ad, offer and copy of each row, shape (n, E - P)."""
        n = len(rows.item)
        position = torch.zeros(n, self.positions + 1)
        position[torch.arange(n), rows.position.cpu().clamp(max=self.positions)] = 1.0
        none = torch.zeros(n)
        flags = (rows.ad, None if rows.offer is None else rows.offer > 0, None if rows.line is None else rows.line >= 0)
        columns = [none if flag is None else flag.cpu().float() for flag in flags]
        return torch.cat(
            [rows.affinity.cpu().float()[:, None] * self.affinity_unit, position[:, 1:], torch.stack(columns, 1)], 1
        )
