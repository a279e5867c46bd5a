"""The copy bank of a run on its way into a bundle: what goes along with it, and whether it is served as built."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.agents.writer_data import discount_of_tiers
from hawker.policies.copy_bank import CopyBank
from hawker.policies.guardrails import Guardrails
from hawker.policies.page_actor import PageStrategy
from hawker.policies.page_copy import PageCopy
from hawker.shop.artefacts import find_directory
from hawker.shop.audiences import Audiences
from hawker.shop.decision import EMPTY
from hawker.shop.figures import Figure, figure
from hawker.shop.logs import read_logs
from hawker.shop.run import Run
from hawker.simulators.store import FittedShoppers

SURFACE = "headline"
"""Where on a page the lines of a bank stand."""

Array = npt.NDArray[Any]


def read_bank(run: Run, rules: Path | None = None) -> CopyBank | None:
    """Return the copy bank of a run, None where it has none.

    Args:
        run: The run.
        rules: The guardrails that the lines must have passed; by default those that come with Hawker.

    Raises:
        InputError: The bank is damaged, or its lines have passed other guardrails.
    """
    if not find_directory(run.bank).is_dir():
        return None
    return CopyBank.load(run.bank, Guardrails.load(rules))


def page_copy(bank: CopyBank, shoppers: FittedShoppers) -> PageCopy:
    """Return a bank as bundles hold it, with the audiences and the discounts of the log that shoppers were fitted to.

    Args:
        bank: The bank.
        shoppers: Fitted shoppers who understand its lines.

    Raises:
        InputError: The log is not there any more or has changed.
    """
    impressions, items = shoppers.read_part("train"), read_logs(shoppers.logs).items
    assert items is not None  # or shoppers could not have been fitted
    tiers = shoppers.ensembles["train"].models[0].recorded.offers or 1
    discounts = discount_of_tiers(impressions, items, tiers)
    lines = () if shoppers.lines is None else shoppers.lines.texts
    return PageCopy(bank, SURFACE, Audiences.fit(impressions, items), discounts, shoppers.builder.catalog, lines)


def without_copy(strategy: PageStrategy, lines: tuple[str, ...]) -> PageStrategy:
    """Return a strategy that chooses all but the lines, which somebody else says; the weights are shared.

    Args:
        strategy: The strategy.
        lines: What may be said.
    """
    actor = copy.copy(strategy.actor)
    actor.layout = replace(actor.layout, lines=None)
    return PageStrategy(actor, strategy.builder, lines, strategy.trained_on)


def compare_copy(said: PageCopy, lines: tuple[str, ...], n: int, size: int, seed: int) -> dict[str, Figure]:
    """Compare what is drawn for n random pages, and other lines, with what the bank says of their probabilities.

    Args:
        said: What draws.
        lines: The bundle's lines.
        n: How many pages.
        size: Slots of a page.
        seed: Of what is drawn.

    Returns:
        ``max_delta_log_prob.copy``: largest difference of a line's log-probability, infinite where one can be drawn by
        one of them alone.
    """
    generator = np.random.default_rng(seed)
    items, audience, tier = _slots(said, n, size, generator)
    drawn = said.choose(items, audience, tier, generator)
    other = generator.permuted(drawn.lines)
    other = np.where((items == EMPTY) | (other == EMPTY), drawn.lines, other)
    apart = 0.0
    for numbers in (drawn.lines, other):
        expected, found = (
            _log_probs(said, items, audience, tier, numbers, lines),
            said.log_prob(items, audience, tier, numbers),
        )
        same = found == expected  # infinities too
        apart = max(apart, float(np.abs(np.where(same, 0.0, found) - np.where(same, 0.0, expected)).max(initial=0.0)))
    apart = max(
        apart, float(np.abs(drawn.log_prob - said.log_prob(items, audience, tier, drawn.lines)).max(initial=0.0))
    )
    return {"max_delta_log_prob.copy": figure(apart, None, None, n, "nats")}


def golden_copy(
    said: PageCopy, lines: tuple[str, ...], golden: Mapping[str, Array], generator: np.random.Generator
) -> dict[str, Array]:
    """Return golden examples of the bank: slots with lines, and the audiences of golden lives, as a log tells them.

    Args:
        said: What will answer them.
        lines: The bundle's lines.
        golden: The other golden examples.
        generator: Draws the slots.
    """
    n, size = golden["life.slate"].shape[1:]
    items, audience, tier = _slots(said, n, size, generator)
    numbers = said.choose(items, audience, tier, generator).lines
    found = {"bank.items": items, "bank.audience": audience, "bank.tier": tier, "bank.lines": numbers}
    found["answer.bank"] = _log_probs(said, items, audience, tier, numbers, lines)
    return found | {"answer.audience": audiences_of_lives(said, golden)}


def _slots(said: PageCopy, n: int, size: int, generator: np.random.Generator) -> tuple[Array, Array, Array]:
    """Draw items (n, K), half of them from the bank's, some slots empty; audiences and tiers (n,)."""
    known = np.unique(said.items.get_indexer(pd.Index(said.bank.table["item_id"])))
    known = known[known >= 0] if (known >= 0).any() else np.arange(len(said.items))
    items = np.where(
        generator.random((n, size)) < 0.5,
        generator.choice(known, (n, size)),
        generator.integers(len(said.items), size=(n, size)),
    )
    items = np.where(generator.random((n, size)) < 0.1, EMPTY, items)
    audience = generator.integers(len(said.audiences.labels), size=n)
    return items, audience, generator.integers(len(said.discounts), size=n)


def _log_probs(
    said: PageCopy, items: Array, audience: Array, tier: Array, numbers: Array, lines: tuple[str, ...]
) -> npt.NDArray[np.float64]:
    """Return the log-probabilities of lines as ``CopyBank.probabilities`` has them, shape (n, K); 0 in empty slots."""
    shown, page = items != EMPTY, np.nonzero(items != EMPTY)[0]
    labels, texts = np.array(said.audiences.labels, object), np.array(lines, object)
    found = np.ones(items.shape)
    found[shown] = said.bank.probabilities(
        list(said.items[items[shown]]),
        list(labels[audience[page]]),
        np.array(said.discounts)[tier[page]].tolist(),
        said.surface,
        list(texts[numbers[shown]]),
    )
    with np.errstate(divide="ignore"):
        return np.log(found)


def audiences_of_lives(said: PageCopy, golden: Mapping[str, Array]) -> npt.NDArray[np.int64]:
    """Return the audience of each of G shoppers at each page of their lives and at the next, from a log of those.

    Args:
        said: Has the audiences.
        golden: ``life.slate``, ``life.clicked``, ``life.converted`` (P, G, K), ``life.gap``, ``life.number`` (P, G),
            ``life.next_gap``, ``life.next_number`` (G,).

    Returns:
        Numbers in ``audiences.labels``, shape (P + 1, G).
    """
    slate = golden["life.slate"]
    pages, n = slate.shape[0] + 1, slate.shape[1]
    gap, number = (np.vstack([golden[f"life.{name}"], golden[f"life.next_{name}"][None]]) for name in ("gap", "number"))
    begins = (number == 0) & (np.arange(pages) > 0)[:, None]
    visit, place = begins.cumsum(0), np.broadcast_to(np.arange(pages)[:, None], (pages, n))
    first = np.maximum.accumulate(np.where(begins, place, 0), 0)
    told = pd.DataFrame({
        "shopper_id": np.broadcast_to(np.arange(n), (pages, n)).ravel(),
        "visit": visit.ravel(),
        "page": (place - first).ravel(),
        "timestamp": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(gap.cumsum(0).ravel(), unit="D"),
    })  # fmt: skip
    told["visit_id"] = told["shopper_id"] * pages + told["visit"]
    told["timestamp"] = told["timestamp"].dt.tz_localize(None)
    item_ids = np.append(np.array(said.items, object), "")
    at, _, _ = shown = np.nonzero(slate != EMPTY)
    shown_rows = told.iloc[at * n + shown[1]].assign(
        item_id=item_ids[slate[shown]], clicked=golden["life.clicked"][shown], converted=golden["life.converted"][shown]
    )
    rows = pd.concat([told.assign(item_id="", clicked=0.0, converted=0.0), shown_rows], ignore_index=True)
    names = np.append(np.array(said.audiences.liked, object), "")
    label = said.audiences.label(rows, pd.DataFrame({"item_id": said.items, "category": names[said.liked]}))
    return label.codes[: pages * n].reshape(pages, n).astype(np.int64)
