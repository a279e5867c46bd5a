"""How well learned shoppers predict a fresh cohort: clicks, purchases, leaving and coming back, against the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hawker.benchmarks.fidelity_cohort import (
    Cohort,
    Predictions,
    page_rows,
    picked,
    predict_cohort,
    repeat,
    shown_instead,
)
from hawker.benchmarks.fidelity_metrics import (
    Floats,
    Ints,
    by_group,
    by_shopper,
    explained,
    hazard_losses,
    losses,
    reliability,
    returned_by,
    spearman,
    tercile_means,
    within_correlation,
    worst_error,
)
from hawker.shop.decision import Decision
from hawker.shop.figures import Figure
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.rows import Rows
from hawker.simulators.shopper import HEADS, Ensemble, calibrated

WEEK = 7
"""Days of the return whose calibration is shown."""

HORIZON = 60
"""Days over which the distributions of return times are compared."""


@dataclass(frozen=True, eq=False)
class Expected:
    """Somebody's probabilities for a cohort.

    Attributes:
        click: P(click) of each impression, shape (n,).
        conversion: P(purchase | click) of each clicked impression, shape (clicks,).
        leave: P(the visit ends with the page), shape (P,).
        hazard: P(return on day d | not before) after each visit, shape (visits, days).
    """

    click: Floats
    conversion: Floats
    leave: Floats
    hazard: Floats

    def of(self, head: str) -> Floats:
        """Return a head's probabilities."""
        return {"click": self.click, "conversion": self.conversion, "leave": self.leave}[head]


@dataclass(frozen=True, eq=False)
class Happened:
    """What came of a cohort's pages, and which of its pages and impressions each head is judged on.

    Attributes:
        clicks, purchases, leaves: 0 or 1, shapes (n,), (clicks,), (pages judged,).
        wait, returned: As in ``hazard_losses``, shape (visits,).
        bought: Which impressions were clicked, shape (n,).
        ends: The pages that ended a visit whose return can be known, shape (visits,).
        closing: Which pages are known to have ended the visit or not, shape (P,).
        shopper: The shopper of each event, by head.
        n: Shoppers.
    """

    clicks: Floats
    purchases: Floats
    leaves: Floats
    wait: Floats
    returned: Floats
    bought: Tensor
    ends: Tensor
    closing: Tensor
    shopper: dict[str, Ints]
    n: int

    def loss(self, head: str, expected: Expected) -> Floats:
        """Return each shopper's total loss under somebody's probabilities, shape (S,)."""
        if head == "return":
            each = hazard_losses(expected.hazard, self.wait, self.returned)
        else:
            each = losses(expected.of(head), self.events(head))
        return by_shopper(each, self.shopper[head], self.n)

    def events(self, head: str) -> Floats:
        """Return what happened, 0 or 1."""
        return {"click": self.clicks, "conversion": self.purchases, "leave": self.leaves}[head]

    def days(self) -> int:
        """Return the longest wait."""
        return max(int(self.wait.max(initial=1)), 1)


def happened(cohort: Cohort, rows: Rows) -> Happened:
    """Say what came of a cohort, with the censoring that its log has."""
    assert rows.time is not None
    assert rows.converted is not None
    bought = rows.clicked > 0
    ends = (~rows.time.returned.isnan()).nonzero().squeeze(1)
    closing = ~rows.time.closes.isnan()
    shopper = torch.from_numpy(cohort.pages.shopper)
    row_shopper = shopper[rows.page]
    return Happened(
        clicks=_floats(rows.clicked),
        purchases=_floats(rows.converted[bought]),
        leaves=_floats(rows.time.closes[closing]),
        wait=_floats(rows.time.wait[ends]),
        returned=_floats(rows.time.returned[ends]),
        bought=bought,
        ends=ends,
        closing=closing,
        shopper={
            "click": row_shopper.numpy(),
            "conversion": row_shopper[bought].numpy(),
            "leave": shopper[closing].numpy(),
            "return": shopper[ends].numpy(),
        },
        n=int(shopper.max()) + 1,
    )


def expected_by_state(world: BazaarWorld, cohort: Cohort, seen: Happened) -> Expected:
    """Return the probabilities of somebody who knows the hidden state: those that the cohort was drawn from."""
    filled = cohort.filled
    return Expected(
        click=_floats(cohort.click[filled]),
        conversion=_floats(cohort.conversion[filled][seen.bought]),
        leave=_floats(cohort.leave[seen.closing]),
        hazard=_floats(world.return_hazard(picked(cohort.after, seen.ends), seen.days())),
    )


def expected_by_model(said: Predictions, seen: Happened) -> Expected | None:
    """Return the mean of the members' probabilities; None where a head is missing."""
    hazard = said.hazard(seen.ends, seen.days())
    if said.conversion is None or said.leave is None or hazard is None:
        return None
    return Expected(
        click=_floats(said.click.mean(0)),
        conversion=_floats(said.conversion[:, seen.bought].mean(0)),
        leave=_floats(said.leave[:, seen.closing].mean(0)),
        hazard=_floats(hazard.mean(0)),
    )


def expected_by_rates(train: Rows, seen: Happened) -> Expected:
    """Return the rates of a log: of clicks, of purchases among clicks, of pages that end visits, of returns a day."""
    assert train.time is not None
    assert train.converted is not None
    clicked = train.clicked > 0
    closes = train.time.closes[~train.time.closes.isnan()]
    ends = ~train.time.returned.isnan()
    returns = train.time.returned[ends].sum()
    # Days 1 .. wait were at risk where a return came, days 1 .. wait - 1 where none did.
    at_risk = (train.time.wait[ends] - 1).clamp(min=0).sum() + returns
    rates = (train.clicked.mean(), train.converted[clicked].mean(), closes.mean(), returns / at_risk)
    shapes = (seen.clicks.shape, seen.purchases.shape, seen.leaves.shape, (len(seen.ends), seen.days()))
    click, conversion, leave, hazard = (np.full(shape, float(rate)) for shape, rate in zip(shapes, rates, strict=True))
    return Expected(click, conversion, leave, hazard)


def head_losses(seen: Happened, everybody: dict[str, Expected]) -> dict[str, dict[str, float]]:
    """Return everybody's mean loss in nats, by head and name."""
    counts = {head: len(seen.shopper[head]) for head in HEADS}
    return {
        head: {name: float(seen.loss(head, expected).sum() / counts[head]) for name, expected in everybody.items()}
        for head in HEADS
    }


def explained_figures(
    seen: Happened, constant: Expected, model: Expected, truth: Expected, seed: int
) -> dict[str, Figure]:
    """Return the share of the explainable loss that a model explains, by head."""
    generator = np.random.default_rng(seed)
    found = {}
    for head in HEADS:
        a, b, c = (seen.loss(head, who) for who in (constant, model, truth))
        found[head] = explained(a, b, c, generator)
    return found


def calibration_details(cohort: Cohort, rows: Rows, seen: Happened, model: Expected, truth: Expected) -> dict[str, Any]:
    """Return each head's reliability diagram, and predicted over true means by hidden segment and by position."""
    segment = cohort.before["segment"]
    at = {
        "click": rows.page,
        "conversion": rows.page[seen.bought],
        "leave": seen.closing.nonzero().squeeze(1),
        "return": seen.ends,
    }
    position = {"click": rows.position, "conversion": rows.position[seen.bought]}
    position["leave"] = torch.from_numpy(cohort.pages.page)[at["leave"]].clamp(max=9)
    position["return"] = torch.from_numpy(cohort.pages.page)[at["return"]].clamp(max=9)
    found = {}
    for head in HEADS:
        if head == "return":
            # By a week: censored waits say nothing of it unless they are longer, the truth always does.
            days = max(WEEK, 1)
            said, true = (returned_by(who.hazard[:, :days])[:, -1] for who in (model, truth))
            events = ((seen.returned > 0) & (seen.wait <= days)).astype(np.float64)
        else:
            said, true, events = model.of(head), truth.of(head), seen.events(head)
        bins = reliability(said, true, events)
        found[head] = {
            "bins": bins,
            "worst": worst_error(bins),
            "predicted_over_true": float(said.mean() / true.mean()),
            "by_segment": by_group(said, true, segment[at[head]].numpy()),
            "by_position" if head in ("click", "conversion") else "by_page": by_group(
                said, true, position[head].numpy()
            ),
        }
    return found


def return_curves(
    world: BazaarWorld, cohort: Cohort, seen: Happened, predicted: Floats
) -> tuple[list[Floats], list[Floats]]:
    """Return mean predicted and true P(return by day d) by tercile of true satisfaction, (D,) each.

    Args:
        world: The gold world.
        cohort: The cohort.
        seen: Its visits.
        predicted: P(return by day d) after each visit, d = 1..D, shape (visits, D).
    """
    after = picked(cohort.after, seen.ends)
    true = returned_by(_floats(world.return_hazard(after, predicted.shape[1])))
    score = _floats(after["satisfaction"])
    return tercile_means(predicted, score), tercile_means(true, score)


def return_distances(curves: tuple[list[Floats], list[Floats]]) -> list[float]:
    """Return the largest distance over days between predicted and true, by tercile."""
    return [float(np.abs(said - true).max()) for said, true in zip(*curves, strict=True)]


def reachable(world: BazaarWorld, cohort: Cohort, rows: Rows, seen: Happened, history: Expected) -> dict[str, Any]:
    """Return ``relative_calibration``, ``return_ks`` and ``ks_worst`` of somebody who knows all but the hidden state.

    No model can be expected to come closer: by chance in the first, and in the second because the terciles are of a
    satisfaction that nobody sees.
    """
    calibration = calibration_details(cohort, rows, seen, history, expected_by_state(world, cohort, seen))
    distances = return_distances(return_curves(world, cohort, seen, returned_by(history.hazard)))
    return {
        "relative_calibration": max(entry["worst"] for entry in calibration.values()),
        "return_ks": distances,
        "ks_worst": max(distances),
    }


@dataclass(frozen=True, eq=False)
class Swaps:
    """Other items in one position of some pages of a cohort, m pages with c variants each.

    Attributes:
        pages: The pages, shape (m,).
        position: The position, shape (m,).
        decision: The pages with the other items, page by page, (m * c, K).
        truth: True P(click) at the position, shape (m, c).
    """

    pages: Tensor
    position: Tensor
    decision: Decision[Tensor]
    truth: Tensor

    @property
    def variants(self) -> int:
        """How many variants a page has."""
        return self.truth.shape[1]

    def at_position(self, values: Tensor) -> Tensor:
        """Return the values at the position, (m, c), of those of whole pages, (m * c, K)."""
        place = self.position.repeat_interleave(self.variants)
        return values.gather(1, place[:, None]).reshape(len(self.pages), self.variants)


def make_swaps(world: BazaarWorld, cohort: Cohort, pages: int, items: int, seed: int) -> Swaps:
    """Swap launched items that are not on the page into one of its positions; all else stays as it was shown."""
    generator = torch.Generator().manual_seed(seed)
    full = cohort.filled.all(1).nonzero().squeeze(1)
    some = full[torch.randperm(len(full), generator=generator)[:pages]]
    shown, m = cohort.decision, len(some)
    position = torch.randint(world.size, (m,), generator=generator)
    keys = torch.rand(m, len(world.launched), generator=generator).masked_fill(~world.launched, -1.0)
    keys.scatter_(1, shown.slate[some], -1.0)
    other = keys.topk(items, 1).indices
    slate = shown.slate[some].repeat_interleave(items, 0)
    slate.scatter_(1, position.repeat_interleave(items)[:, None], other.reshape(-1, 1))
    assert shown.ad is not None
    assert shown.offer is not None
    assert shown.copy is not None
    ad, offer, line = (part[some].repeat_interleave(items, 0) for part in (shown.ad, shown.offer, shown.copy))
    decision = Decision(slate, torch.zeros(len(slate)), ad=ad, offer=offer, copy=line)
    truth = world.click_probabilities(repeat(picked(cohort.before, some), items), decision)
    swaps = Swaps(some, position, decision, torch.zeros(m, items))
    return replace(swaps, truth=swaps.at_position(truth))


@torch.no_grad()
def predict_pages(ensemble: Ensemble, rows: Rows, pages: Tensor, decision: Decision[Tensor], times: int) -> Tensor:
    """Return each member's calibrated P(click) of other decisions at a log's pages, shape (M, m * times, K).

    Args:
        ensemble: The members.
        rows: The log, with the pages that came before.
        pages: Its pages, shape (m,).
        decision: What to show, ``times`` variants page by page, (m * times, K).
        times: Variants of a page.
    """
    shown = page_rows(rows, pages.repeat_interleave(times), decision)
    found = []
    for model, person, told in shown_instead(ensemble, rows, pages.repeat_interleave(times), shown):
        found.append(calibrated(model.log_click(model.log_odds(person, told), told).exp(), ensemble.calibration[0]))
    return torch.stack(found).reshape(len(found), *decision.slate.shape)


def corr_within(ensemble: Ensemble, rows: Rows, swaps: Swaps) -> float:
    """Return the correlation of predicted with true P(click) among items at the same position of the same page."""
    predicted = predict_pages(ensemble, rows, swaps.pages, swaps.decision, swaps.variants).mean(0)
    return within_correlation(_floats(swaps.at_position(predicted)), _floats(swaps.truth))


def spread_against_error(said: Predictions, truth: Expected) -> float:
    """Return the rank correlation of the members' deviation from each other with their mean's error, on clicks."""
    error = np.abs(_floats(said.click.mean(0)) - truth.click)
    return spearman(_floats(said.click.std(0)), error)


def probe_ensemble(
    world: BazaarWorld,
    cohort: Cohort,
    rows: Rows,
    ensemble: Ensemble,
    train: Rows,
    swaps: Swaps,
    seed: int,
    history: Expected | None = None,
    logistic: Expected | None = None,
) -> dict[str, Any]:
    """Hold an ensemble against the truth on a fresh cohort.

    Args:
        world: The gold world.
        cohort: The cohort.
        rows: What can be observed of it, as the ensemble reads it.
        ensemble: The learned shoppers.
        train: The part of the log that they learned from, for the constants.
        swaps: What ``make_swaps`` returned.
        seed: Decides the bootstrap.
        history: What the truth expects given the observable history; without it the hidden state takes its place,
            which no model can reach.
        logistic: What a baseline expects, for the losses.

    Returns:
        ``explained`` (figures by head), ``losses``, ``calibration``, ``relative_calibration``, ``corr_within``,
        ``return_ks`` and ``return_curves`` by satisfaction tercile, ``ks_worst`` and ``spread_error``.
    """
    seen, said = happened(cohort, rows), predict_cohort(ensemble, rows)
    model, state = expected_by_model(said, seen), expected_by_state(world, cohort, seen)
    assert model is not None  # a bazaar's log teaches every head
    constant = expected_by_rates(train, seen)
    everybody = {"constant": constant, "model": model, "state": state}
    everybody |= {name: who for name, who in (("logistic", logistic), ("history", history)) if who is not None}
    calibration = calibration_details(cohort, rows, seen, model, state)
    hazard = said.hazard(seen.ends, HORIZON)
    assert hazard is not None
    # Each simulated shopper lives in one member: their distribution is the mean of the members'.
    curves = return_curves(world, cohort, seen, returned_by(_floats(hazard)).mean(0))
    distances = return_distances(curves)
    return {
        "explained": explained_figures(seen, constant, model, history or state, seed),
        "explained_by": "history" if history is not None else "hidden state",
        "losses": head_losses(seen, everybody),
        "calibration": calibration,
        "relative_calibration": max(entry["worst"] for entry in calibration.values()),
        "corr_within": corr_within(ensemble, rows, swaps),
        "return_ks": distances,
        "return_curves": {
            name: [curve.tolist() for curve in each] for name, each in zip(("predicted", "true"), curves, strict=True)
        },
        "ks_worst": max(distances),
        "spread_error": spread_against_error(said, state) if len(ensemble.models) > 1 else None,
    }


def _floats(tensor: Tensor) -> Floats:
    return np.asarray(tensor.double().numpy())
