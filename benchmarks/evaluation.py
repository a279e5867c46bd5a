"""``hawker ope``: what strategies would have earned on the part of a run's log that nothing was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from hawker.benchmarks.bootstrap import FloatArray, IntArray
from hawker.benchmarks.crossfit import crossfit_q
from hawker.benchmarks.diagnostics import diagnose, refusal
from hawker.benchmarks.ope import ESTIMATORS, Estimate, estimate, estimate_from_weights
from hawker.policies.protocol import Strategy
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.logs import read_logs
from hawker.simulators.split import shopper_codes
from hawker.simulators.store import FittedShoppers

DRAWS = 64
"""Sampled prefixes behind a marginal probability of a later position; the error they leave is reported."""

WEIGHTS_ONLY = ("ips", "snips", "ips_clip(5)", "sg-ips(0.1)")
"""Estimators without a model of the reward: those that whole slates are valued with."""

_CHUNK = 5_000

Level = Literal["row", "page"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The rows that strategies are valued on, n of them.

    Attributes:
        context: Their contexts, with the whole catalog as candidates.
        item: Logged item of each row, (n,).
        position: Its position, (n,).
        clicked: 0 or 1, (n,).
        propensity: P(item at its position) under the logging strategy, (n,), in (0, 1].
        q: Cross-fitted click probability of every item at the row's position, (n, n_items).
        cluster: Number of each row's shopper, or of the visit where the log does not know them, (n,).
        support: True for items that the log shows at all, (n_items,).
    """

    context: Context[torch.Tensor]
    item: IntArray
    position: IntArray
    clicked: FloatArray
    propensity: FloatArray
    q: FloatArray
    cluster: IntArray
    support: npt.NDArray[np.bool_]

    @classmethod
    def from_run(cls, shoppers: FittedShoppers, seed: int) -> HeldOut:
        """Read the rows of a run's log that were kept for estimates, and cross-fit the model of their clicks.

        Raises:
            InputError: The log has changed, or does not know its propensities.
        """
        return cls.from_impressions(shoppers.read_part("estimate"), shoppers, seed)

    @classmethod
    def from_impressions(cls, rows: pd.DataFrame, shoppers: FittedShoppers, seed: int) -> HeldOut:
        """Prepare log rows; ``from_run`` reads them first."""
        if "propensity" not in rows or rows["propensity"].isna().any():
            raise InputError(
                "the log does not know its propensities",
                where=f"{shoppers.logs} column propensity",
                expected="0 < p <= 1 in every row",
                remedy="off-policy estimates need them: log P(item at its position) with every impression",
            )
        if rows.duplicated(["visit_id", "page"]).any():
            raise InputError(
                "rows of one page cannot be valued one by one: their propensities depend on what stands above",
                where=f"{shoppers.logs} table impressions",
                expected="one row per page",
                remedy="value whole slates with --level page",
            )
        builder = shoppers.builder
        context = builder.from_impressions(rows)
        item = builder.catalog.index(rows["item_id"], "impressions")
        cluster = shopper_codes(rows)
        clicked, position = rows["clicked"].to_numpy(np.float64), rows["position"].to_numpy(np.int64)
        n_items = len(builder.catalog)
        q = crossfit_q(
            context.shopper,
            item,
            clicked,
            position,
            n_items,
            builder.catalog.vectors,
            affinity=context.affinity,
            seed=seed,
            cluster=cluster,
        )
        support = np.bincount(item, minlength=n_items) > 0
        tensors = context.map(lambda array: torch.from_numpy(np.array(array)))
        return cls(tensors, item, position, clicked, rows["propensity"].to_numpy(np.float64), q, cluster, support)

    def target(self, strategy: Strategy, seed: int) -> tuple[FloatArray, float]:
        """Return the strategy's probability of every item at each row's position, (n, n_items), and its error."""
        generator = torch.Generator().manual_seed(seed)
        if int(self.position.max()) >= strategy.size:
            raise InputError(
                "the log has positions that the strategy does not fill",
                where=f"strategy {strategy.name}",
                got=strategy.size,
                expected=f"slates of {int(self.position.max()) + 1}",
            )
        target = np.empty((len(self.item), self.q.shape[1]))
        error = 0.0
        for start in range(0, len(target), _CHUNK):
            part = slice(start, start + _CHUNK)
            with torch.no_grad():
                chunk: Context[torch.Tensor] = self.context.map(lambda array, part=part: array[part])  # type: ignore[misc]
                marginals = strategy.distribution(chunk).marginals(DRAWS, generator)
            at = torch.from_numpy(self.position[part])
            target[part] = marginals.probability[torch.arange(len(at)), at].double().numpy()
            error = max(error, marginals.error)
        return target / target.sum(axis=1, keepdims=True), error


def evaluate(
    shoppers: FittedShoppers, strategies: list[Strategy], *, level: Level = "row", force: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Value strategies off-policy on the part of the run's log kept for estimates.

    Args:
        shoppers: The run's shoppers, which know the log and its split.
        strategies: On the CPU; the first one is what the others are compared with.
        level: ``row`` values an item at its position, for logs whose rows stand alone; it assumes that positions add
            up: the item above does not change the click below. ``page`` values whole slates, and needs the logged
            candidates of every page.
        force: Give figures even where the log cannot support them.
        seed: Of folds, draws and bootstrap.

    Returns:
        The report (``ope.json``): figures, diagnostics, refusals with their reasons, notes.

    Raises:
        InputError: No propensities, unknown candidates, a log that has changed, or a bad seed.
    """
    if not 0 <= seed < 2**63:
        raise InputError("bad seed", where="seed", got=seed, expected="an integer from 0 to 2**63 - 1")
    names = [strategy.name for strategy in strategies]
    if len(set(names)) < len(names):
        raise InputError("two strategies have the same name", where="ope", got=names)
    return (
        _evaluate_pages(shoppers, strategies, force, seed)
        if level == "page"
        else _evaluate_rows(HeldOut.from_run(shoppers, seed), strategies, force, seed)
    )


def _evaluate_rows(held_out: HeldOut, strategies: list[Strategy], force: bool, seed: int) -> dict[str, Any]:
    n = len(held_out.item)
    figures: dict[str, Figure] = {"logged": logged_figure(held_out.clicked, held_out.cluster, seed, "per impression")}
    diagnostics, refused, scores = {}, {}, {}
    for strategy in strategies:
        target, error = held_out.target(strategy, seed)
        weight = target[np.arange(n), held_out.item] / held_out.propensity
        found = diagnose(weight, target, held_out.support)
        diagnostics[strategy.name] = {**found._asdict(), "marginal_error": error}
        if (reason := refusal(found)) is not None:
            refused[strategy.name] = reason
            if not force:
                continue
        estimates = estimate(
            held_out.clicked,
            held_out.item,
            held_out.propensity,
            target,
            held_out.q,
            ESTIMATORS,
            cluster=held_out.cluster,
            seed=seed,
        )
        figures |= {
            f"{e}.{strategy.name}": _figure(value, n, "clicks per impression") for e, value in estimates.items()
        }
        q_logged = held_out.q[np.arange(n), held_out.item]
        scores[strategy.name] = weight * (held_out.clicked - q_logged) + (target * held_out.q).sum(axis=1)
    figures |= _differences(scores, strategies[0].name, held_out.cluster, seed)
    notes = ["one row is one item at one position; positions are assumed to add up"]
    return _report(figures, diagnostics, refused, force, notes, seed)


def _differences(scores: dict[str, FloatArray], first: str, cluster: IntArray, seed: int) -> dict[str, Figure]:
    """Compare the rows' doubly robust scores with the first strategy's: paired, so that what is common cancels.

    The largest difference seen may well have come with the other sign: with a handful of clicks, all of them may have
    fallen on items that one strategy happens to favour. The limits reckon with it.
    """
    figures = {}
    for name, score in scores.items():
        if name != first and first in scores:
            difference = score - scores[first]
            largest = float(np.abs(difference).max())
            estimated = _mean(difference, cluster, seed, (-largest, largest))
            figures[f"dr.{name}_minus_{first}"] = _figure(estimated, len(score), "clicks per impression")
    return figures


def _evaluate_pages(shoppers: FittedShoppers, strategies: list[Strategy], force: bool, seed: int) -> dict[str, Any]:
    pages = read_logs(shoppers.logs).pages
    needed = ("log_prob_slate", "candidates")
    if pages is None or any(column not in pages or pages[column].isna().any() for column in needed):
        raise InputError(
            "whole slates cannot be valued: the candidates of the logged pages are unknown",
            where=f"{shoppers.logs} table pages",
            expected="columns log_prob_slate and candidates without gaps",
            remedy="log them, or estimate by row (--level row), which assumes that positions add up",
        )
    rows = shoppers.read_part("estimate")
    context, slate, clicks, log_prob, cluster = _slates(rows, pages, shoppers)
    n = len(clicks)
    figures = {"logged": logged_figure(clicks, cluster, seed, "per page")}
    diagnostics, refused = {}, {}
    for strategy in strategies:
        if strategy.size != shoppers.size:
            raise InputError(
                "slates of another size",
                where=f"strategy {strategy.name}",
                got=strategy.size,
                expected=f"{shoppers.size}, as the log's pages",
            )
        with torch.no_grad():
            target = strategy.log_prob(context, Decision(slate, torch.zeros(n))).double().numpy()
        with np.errstate(over="ignore"):  # an infinite weight is refused by name
            weight = np.exp(target - log_prob)
        found = diagnose(weight)
        diagnostics[strategy.name] = {**found._asdict(), "marginal_error": 0.0}
        if (reason := refusal(found)) is not None:
            refused[strategy.name] = reason
            if not force:
                continue
        zero = np.zeros(n)
        estimates = estimate_from_weights(weight, clicks, zero, zero, WEIGHTS_ONLY, cluster=cluster, seed=seed)
        figures |= {f"{e}.{strategy.name}": _figure(value, n, "clicks per page") for e, value in estimates.items()}
    notes = ["one row is one page; its action is the whole ordered slate, without a model of the reward"]
    return _report(figures, diagnostics, refused, force, notes, seed)


def _slates(
    rows: pd.DataFrame, pages: pd.DataFrame, shoppers: FittedShoppers
) -> tuple[Context[torch.Tensor], torch.Tensor, FloatArray, FloatArray, IntArray]:
    """Gather impressions into pages: contexts, slates (P, K), clicks (P,), logged log-probabilities (P,), shoppers."""
    builder = shoppers.builder
    keys = ["visit_id", "page"]
    index = pd.MultiIndex.from_frame(rows[keys])
    code, unique = pd.factorize(index)
    position = rows["position"].to_numpy(np.int64)
    slate = np.full((len(unique), shoppers.size), EMPTY)
    slate[code, position] = builder.catalog.index(rows["item_id"], "impressions")
    first = rows[~index.duplicated()]
    table = pages.set_index(keys)
    if not (known := unique.isin(table.index)).all():
        visit, page = unique[int(np.argmin(known))]
        raise InputError(
            "a page of the log is missing",
            where=f"{shoppers.logs} table pages, visit {visit}, page {page}",
            expected="every page of the table impressions",
        )
    listed = table.loc[unique]
    context = builder.from_impressions(first)
    mask = np.zeros(context.affinity.shape, bool)
    lengths = listed["candidates"].map(len).to_numpy()
    flat = builder.catalog.index(np.concatenate(listed["candidates"].to_list()), "pages.candidates")
    mask[np.repeat(np.arange(len(unique)), lengths), flat] = True
    eligible = mask[code, slate[code, position]]
    if not eligible.all():
        row = int(np.argmin(eligible))
        raise InputError(
            "a page shows an item that is not among its candidates",
            where=f"{shoppers.logs} table pages, visit {rows['visit_id'].iloc[row]}, page {rows['page'].iloc[row]}",
            got=str(rows["item_id"].iloc[row]),
            expected="candidates with everything that could be shown",
        )
    tensors = Context(context.shopper, context.candidates, mask, context.affinity).map(
        lambda array: torch.from_numpy(np.array(array))
    )
    cluster = shopper_codes(first)
    clicks = np.bincount(code, rows["clicked"].to_numpy(np.float64)).astype(np.float64)
    return tensors, torch.from_numpy(slate), clicks, listed["log_prob_slate"].to_numpy(np.float64), cluster


def _report(
    figures: dict[str, Figure],
    diagnostics: dict[str, Any],
    refused: dict[str, str],
    force: bool,
    notes: list[str],
    seed: int,
) -> dict[str, Any]:
    return {
        "figures": figures,
        "diagnostics": diagnostics,
        "refused": refused,
        "forced": force and bool(refused),
        "notes": notes,
        "seeds": [seed],
    }


def logged_figure(clicks: FloatArray, cluster: IntArray, seed: int, per: str) -> Figure:
    """Return the mean of the logged clicks, the value of the logging strategy itself."""
    return _figure(_mean(clicks, cluster, seed), len(clicks), f"clicks {per}")


def _mean(values: FloatArray, cluster: IntArray, seed: int, unseen: tuple[float, float] | None = None) -> Estimate:
    """Return a mean with the same kind of interval as the estimators: their formula with weight 1 and no model."""
    zero = np.zeros(len(values))
    found = estimate_from_weights(
        np.ones(len(values)), values, zero, zero, ["ips"], cluster=cluster, seed=seed, unseen=unseen
    )
    return found["ips"]


def _figure(value: Estimate, n: int, unit: str) -> Figure:
    return figure(value.value, value.low, value.high, n, unit)
