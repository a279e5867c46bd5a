"""A fresh cohort of a gold world: what could be observed of it, and the truth behind every page."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from hawker.benchmarks.bazaar import logging_strategy
from hawker.policies.shopkeeper import Habits, Scores, Shopkeeper
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.language import Encoder
from hawker.simulators.bazaar import DAY, BazaarWorld, State
from hawker.simulators.bazaar_pages import Pages
from hawker.simulators.diary import JOINING, START, Proposer
from hawker.simulators.fidelity import batches
from hawker.simulators.likelihood import predict_rows, recall
from hawker.simulators.memory import EDGES
from hawker.simulators.rows import Rows, encode_log
from hawker.simulators.shopper import Ensemble, ShopperModel, calibrated
from hawker.simulators.store import FittedShoppers
from hawker.simulators.taste_rows import beliefs_before, believed, believing

LOGGED = "popularity"
"""The strategy that writes the logs."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """Shoppers of a gold world on P pages, sorted by shopper and time.

    Attributes:
        pages: What could be observed.
        revenue: Currency earned at each position, shape (P, K).
        before: What the world knew of the shopper before each page, (P, ...) each.
        after: The same after the page, before any rest.
        click, conversion: True P(click), and P(purchase | click), of each position, shape (P, K).
        leave: True P(the visit ends with the page), shape (P,).
    """

    pages: Pages
    revenue: Tensor
    before: State
    after: State
    click: Tensor
    conversion: Tensor
    leave: Tensor

    @property
    def decision(self) -> Decision[Tensor]:
        """The decisions of all pages; their probabilities are not known any more."""
        p = self.pages
        slate, line, ad, offer = (torch.from_numpy(part) for part in (p.slate, p.copy, p.ad, p.offer))
        return Decision(slate, torch.zeros(len(slate)), ad=ad, offer=offer, copy=line)

    @property
    def filled(self) -> Tensor:
        """True where a page shows an item, shape (P, K)."""
        return torch.from_numpy(self.pages.slate != EMPTY)


@torch.no_grad()
def simulate_cohort(world: BazaarWorld, strategy: Proposer, shoppers: int, days: int, seed: int) -> Cohort:
    """Let new shoppers come for a number of days, as a log would, and keep what the world knows of them.

    Args:
        world: Where; on the CPU.
        strategy: What decides.
        shoppers: How many join, evenly over the first days, as in a diary.
        days: No visit begins later.
        seed: Decides everything that is drawn.
    """
    generator = torch.Generator(world.device).manual_seed(seed)
    here, who = world.arrive(shoppers, generator), torch.arange(shoppers)
    features, horizon = here.state["features"], days * DAY
    first = (torch.rand(shoppers, generator=generator) * JOINING * days).long() * DAY
    seen: list[dict[str, Tensor]] = []
    while len(who):
        decision, state = strategy.propose(here.context, generator), here.state
        then, outcome = world.respond(here, decision, generator)
        assert outcome.converted is not None
        assert outcome.revenue is not None
        assert outcome.conversion_probability is not None
        after = world.after_page(state, decision, outcome.clicked, outcome.converted)
        none = torch.full_like(who, EMPTY)
        part = {
            "shopper": who,
            "moment": first + state["clock"],
            "slate": decision.slate,
            "copy": torch.full_like(decision.slate, EMPTY) if decision.copy is None else decision.copy,
            "ad": none if decision.ad is None else decision.ad,
            "offer": torch.zeros_like(who) if decision.offer is None else decision.offer,
            "clicks": outcome.clicked,
            "converted": outcome.converted,
            "revenue": outcome.revenue,
            "p_click": outcome.click_probability,
            "p_conversion": outcome.conversion_probability,
            "p_leave": world.leave_probability(after),
        }
        part |= {f"before {name}": value for name, value in state.items()}
        seen.append(part | {f"after {name}": value for name, value in after.items()})
        stay = ~outcome.gone & (first + then.state["clock"] < horizon)
        here, who, first = then.take(stay), who[stay], first[stay]
    whole = {name: torch.cat([page[name] for page in seen]) for name in seen[0]}
    order = torch.argsort(whole["shopper"] * (horizon + DAY) + whole["moment"])
    whole = {name: value[order] for name, value in whole.items()}
    before, after = (
        {name.removeprefix(when): value for name, value in whole.items() if name.startswith(when)}
        for when in ("before ", "after ")
    )
    pages = Pages(
        shopper=whole["shopper"].numpy(),
        page=before["page"].numpy(),
        clock=whole["moment"].numpy(),
        slate=whole["slate"].numpy(),
        copy=whole["copy"].numpy(),
        ad=whole["ad"].numpy(),
        offer=whole["offer"].numpy(),
        clicked=whole["clicks"].bool().numpy(),
        converted=whole["converted"].bool().numpy(),
        features=features.numpy(),
    )
    truth = (whole[name] for name in ("p_click", "p_conversion", "p_leave"))
    return Cohort(pages, whole["revenue"], before, after, *truth)


def impressions(world: BazaarWorld, cohort: Cohort) -> pd.DataFrame:
    """Return what a log would say of the cohort: impressions in the order of its pages, from the top."""
    pages, filled = cohort.pages, cohort.pages.slate != EMPTY
    row, position = filled.nonzero()
    line = pages.copy[filled]
    lines = np.array([*world.lines, None], dtype=object)
    known = {
        feature.name: np.array(feature.values, dtype=object)[pages.features[:, i]][pages.shopper[row]]
        for i, feature in enumerate(world.parameters.features)
    }
    return pd.DataFrame(
        {
            "visit_id": np.cumsum(pages.page == 0)[row],
            "page": pages.page[row],
            "position": position,
            "shopper_id": np.char.mod("c%07d", pages.shopper)[row],
            "timestamp": START + pd.to_timedelta(pages.clock[row], unit="s"),
            "item_id": np.array(world.builder.catalog.item_ids, dtype=object)[pages.slate[filled]],
            "placement": np.where(pages.ad[row] == position, "ad", "organic"),
            "clicked": pages.clicked[filled].astype(np.int64),
            "converted": pages.converted[filled].astype(np.float64),
            "revenue": cohort.revenue.numpy()[filled].astype(np.float64),
            "copy": lines[line],
            "offer": pages.offer[row],
            **known,
        }
    )


def encode_cohort(world: BazaarWorld, cohort: Cohort, shoppers: FittedShoppers, encoder: Encoder) -> Rows:
    """Return the cohort as fitted shoppers read it; lines are numbered as in ``world.lines``: see ``read_lines``."""
    lines = None if shoppers.lines is None else shoppers.lines.with_texts(world.lines, encoder)
    log = encode_log(impressions(world, cohort), shoppers.builder, lines, torch.device("cpu"))
    if (np.diff(log.order) != 1).any():  # shoppers, visits and pages are numbered in order of time
        raise AssertionError("the cohort's rows have lost their order")
    return log.rows


def read_lines(ensemble: Ensemble, world: BazaarWorld, shoppers: FittedShoppers, encoder: Encoder) -> Ensemble:
    """Return the ensemble with the world's lines, seen in logs or not, in place of the bank of its log."""
    if shoppers.lines is None:
        return ensemble
    vectors = torch.from_numpy(shoppers.lines.with_texts(world.lines, encoder).scaled)
    ensemble = copy.deepcopy(ensemble)
    readers = ensemble.models if ensemble.tastes is None else [*ensemble.models, ensemble.tastes]
    for reader in readers:
        reader.line_vectors = vectors
    return ensemble


@dataclass(frozen=True)
class Predictions:
    """What M members of an ensemble expect, calibrated; None where their log taught them nothing of it.

    Attributes:
        click, conversion: P(click), P(purchase | click) of each impression, shape (M, n).
        leave: P(the visit ends with the page), shape (M, P).
        back: P(return on a day, if not before) for each interval of ``EDGES``, shape (M, P, intervals).
    """

    click: Tensor
    conversion: Tensor | None
    leave: Tensor | None
    back: Tensor | None

    def hazard(self, pages: Tensor, days: int) -> Tensor | None:
        """Return P(return on day d | not before), d = 1..days, after some pages, shape (M, pages, days)."""
        if self.back is None:
            return None
        interval = torch.bucketize(torch.arange(1, days + 1), torch.tensor(EDGES), right=True) - 1
        return self.back[:, pages][:, :, interval]


@torch.no_grad()
def predict_cohort(ensemble: Ensemble, rows: Rows) -> Predictions:
    """Return what the ensemble expects at each page of a log, given the pages of the same shopper before it."""
    said: dict[str, list[Tensor]] = {}
    calibration, rows = ensemble.calibration, believing(ensemble.tastes, rows)
    for batch in batches(rows):
        for model_number, model in enumerate(ensemble.models):
            p = predict_rows(model, batch)
            odds = {"conversion": p.conversion, "leave": p.leave, "back": p.back}
            raw = {"click": p.click.exp()} | {k: v.sigmoid() for k, v in odds.items() if v is not None}
            for head, probability in raw.items():
                place = ("click", "conversion", "leave", "back").index(head)
                said.setdefault(f"{head}{model_number}", []).append(calibrated(probability, calibration[place]))

    def merged(head: str) -> Tensor | None:
        if f"{head}0" not in said:
            return None
        return torch.stack([torch.cat(said[f"{head}{i}"]) for i in range(len(ensemble.models))])

    click = merged("click")
    assert click is not None
    return Predictions(click, merged("conversion"), merged("leave"), merged("back"))


@torch.no_grad()
def shown_instead(
    ensemble: Ensemble, rows: Rows, pages: Tensor, shown: Rows
) -> Iterator[tuple[ShopperModel, Tensor, Rows]]:
    """Yield each member, what its heads see of shoppers, and other rows with what classes of taste expect of them.

    Args:
        ensemble: The members.
        rows: A log.
        pages: The pages of it, shape (m,), in whose place the other rows are shown, page by page.
        shown: Those rows.
    """
    if ensemble.tastes is not None:
        beliefs = beliefs_before(ensemble.tastes, rows)
        rows = replace(rows, believed=believed(ensemble.tastes, beliefs, rows))
        shown = replace(shown, believed=believed(ensemble.tastes, beliefs[pages], shown))
    for model in ensemble.models:
        yield model, torch.cat([recall(model, batch)[0] for batch in batches(rows)])[pages], shown


def page_rows(rows: Rows, pages: Tensor, decision: Decision[Tensor]) -> Rows:
    """Return other decisions (m, K), without empty slots, shown at some pages (m,) of a log."""
    n, size = decision.slate.shape
    place = torch.arange(size)
    assert decision.offer is not None
    assert decision.ad is not None
    assert decision.copy is not None
    ad = (decision.ad[:, None] == place).float().reshape(-1)
    return Rows(
        rows.shopper[pages],
        page=torch.arange(n).repeat_interleave(size),
        item=decision.slate.reshape(-1),
        position=place.repeat(n),
        affinity=torch.zeros(n * size),
        clicked=torch.zeros(n * size),
        line=None if rows.line is None else decision.copy.reshape(-1),
        offer=None if rows.offer is None else decision.offer.repeat_interleave(size),
        ad=None if rows.ad is None else ad,
    )


def column(world: BazaarWorld, name: str) -> Tensor:
    """Return a numeric column of the items table, shape (I,)."""
    return torch.tensor(world.items.table[name].to_numpy(np.float32))


def shopkeeper(
    world: BazaarWorld, name: str, scores: Scores, habits: Habits, lines: npt.NDArray[np.bool_] | None = None
) -> Shopkeeper:
    """Return a strategy by rules; ``lines`` marks what it may say, shape (L,), by default all lines of the logs."""
    usable = world.logged_lines if lines is None else torch.from_numpy(lines)
    return Shopkeeper(name, world.size, scores, habits, column(world, "bid"), usable.nonzero().squeeze(1))


def served(world: BazaarWorld, shoppers: int, days: int, seed: int) -> Cohort:
    """Return a fresh cohort of the strategy that writes the logs."""
    return simulate_cohort(world, logging_strategy(world, LOGGED), shoppers, days, seed)


def repeat(state: State, times: int) -> State:
    """Return a state with every shopper repeated, one after the other."""
    return {name: value.repeat_interleave(times, 0) for name, value in state.items()}


def picked(state: State, rows: Tensor) -> State:
    """Return the state of some shoppers."""
    return {name: value[rows] for name, value in state.items()}
