"""What ``hawker demo`` shows of words and pages, before and after training: drawn at random, none picked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hawker.agents.bank_export import SURFACE
from hawker.agents.writer_data import Assignment, item_brief
from hawker.app.tables import console, text_table
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.strategist import audience_of
from hawker.policies.writer import Writer
from hawker.shop.decision import EMPTY, Decision
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.diary import Proposer
from hawker.simulators.world import Shoppers, World

MET = 32
"""Shoppers of whom the samples are taken."""

EARLIER = 6
"""Pages that they have seen, so that there is something to know of them."""

LATEST = 8
"""Pages of the history in the example of a request, at most."""

Says = Callable[[list[Brief]], list[str]]
"""A writer: a line for each brief."""


def sample_lines(
    writers: Mapping[str, str], guardrails: Guardrails, given: Sequence[Assignment], seed: int
) -> list[dict[str, Any]]:
    """Let several writers write one line for each brief, as they draw it, refused ones too.

    Args:
        writers: Language models, as ``Writer.load`` takes them, by what to call them; read one after the other.
        guardrails: The rules.
        given: What to write for.
        seed: Decides what is drawn.

    Returns:
        For each brief ``item_id``, ``title``, ``audience``, ``discount``, and ``lines``: by writer the ``line`` and
        the rules that it breaks, ``refused``.
    """
    briefs = [each.brief for each in given]
    told: list[dict[str, Any]] = [
        {
            "item_id": each.item_id,
            "title": each.brief.title,
            "audience": each.brief.audience,
            "discount": each.brief.discount,
            "lines": {},
        }
        for each in given
    ]
    for name, model in writers.items():
        drawn = Writer.load(model, torch.device("cpu")).write(briefs, 1, 1.0, seed)
        for row, brief, said in zip(told, briefs, drawn, strict=True):
            line = guardrails.tidy(said[0])
            rules = sorted({hit.rule for hit in guardrails.hits(line, brief)})
            row["lines"][name] = {"line": line, "refused": rules}
    return told


def print_lines(samples: Sequence[Mapping[str, Any]]) -> None:
    """Print sample lines, a table for each brief."""
    for sample in samples:
        rows = [(name, _quoted(said["line"], said["refused"])) for name, said in sample["lines"].items()]
        console().print(text_table(_about(sample), ("written by", "line"), rows))


def _about(sample: Mapping[str, Any]) -> str:
    offer = f"{sample['discount']:.0%} off" if sample["discount"] else "no offer"
    return f"{sample['title']}, {offer}, for {sample['audience'] or 'anybody'}"


def _quoted(line: str, refused: Sequence[str]) -> str:
    return f'"{line}"' + (f"  (refused: {', '.join(refused)})" if refused else "")


def sample_pages(
    world: BazaarWorld,
    met: tuple[World, Proposer],
    usual: Proposer,
    items: pd.DataFrame,
    discounts: Sequence[float],
    n: int,
    seed: int,
    first: Says | None = None,
) -> list[dict[str, Any]]:
    """Return pages that shoppers of the gold world get after some pages, from two strategies.

    Args:
        world: The gold world.
        met: The gold world as the trained strategy sees it, and the strategy, which has shown the earlier pages too.
        usual: The strategy that wrote the logs.
        items: The log's items, in the catalog's order.
        discounts: Share of the price that each tier of the offer takes off.
        n: Shoppers.
        seed: Decides who comes and what is drawn.
        first: The writer before it was optimised; None leaves its lines out.

    Returns:
        For each shopper ``audience`` (None where the world tells none) and two pages, ``before`` of the usual strategy
        and ``after``: ``discount`` of its offer, and ``slots``, each with ``item_id``, ``title``, ``price`` (currency,
        the offer taken off), ``ad`` and ``line`` (None for none); where a writer is given, the slots of ``after`` have
        its line for the same place as ``first_line``.
    """
    where, strategy = met
    generator = torch.Generator(where.device).manual_seed(seed)
    here = _after_some_pages(where, strategy, max(n, MET), generator)
    here = here.take(torch.arange(min(n, len(here.member)), device=where.device))
    labels: list[str | None] = [None] * len(here.member)
    if isinstance(where, AudienceWorld):
        labels = [where.audiences.labels[i] for i in audience_of(here.context)[1].tolist()]
    table = items.to_dict("records")
    before = _pages(world, usual.propose(here.context, generator), world.lines, table, discounts)
    after = _pages(world, strategy.propose(here.context, generator), where.lines, table, discounts)
    shown: list[dict[str, Any]] = [
        {"audience": label, "before": one, "after": other}
        for label, one, other in zip(labels, before, after, strict=True)
    ]
    if first is not None:
        slots = [(page, slot) for page in shown for slot in page["after"]["slots"]]
        rows = {str(row["item_id"]): row for row in table}
        asked = [
            item_brief(rows[slot["item_id"]], SURFACE, page["audience"] or "", page["after"]["discount"])
            for page, slot in slots
        ]
        for (_, slot), line in zip(slots, first(asked), strict=True):
            slot["first_line"] = line
    return shown


def _after_some_pages(where: World, strategy: Proposer, n: int, generator: torch.Generator) -> Shoppers:
    """Return the shoppers of n new ones who have seen ``EARLIER`` pages and still come."""
    here = where.arrive(n, generator)
    for _ in range(EARLIER):
        later, outcome = where.respond(here, strategy.propose(here.context, generator), generator)
        if bool(outcome.gone.all()):
            break
        here = later.take(~outcome.gone)
    return here


def _pages(
    world: BazaarWorld,
    decision: Decision[Tensor],
    lines: Sequence[str],
    items: Sequence[Mapping[Any, Any]],
    discounts: Sequence[float],
) -> list[dict[str, Any]]:
    prices = world.price_shown(decision).tolist()
    tiers = [0] * len(prices) if decision.offer is None else decision.offer.tolist()
    pages = []
    for i, slate in enumerate(decision.slate.tolist()):
        said = [EMPTY] * len(slate) if decision.copy is None else decision.copy[i].tolist()
        ad = EMPTY if decision.ad is None else int(decision.ad[i])
        slots = [
            {
                "item_id": str(items[item]["item_id"]),
                "title": str(items[item]["title"]),
                "price": round(prices[i][k], 2),
                "ad": k == ad,
                "line": None if said[k] == EMPTY else lines[said[k]],
            }
            for k, item in enumerate(slate)
            if item != EMPTY
        ]
        pages.append({"discount": float(np.round(discounts[tiers[i]], 4)), "slots": slots})
    return pages


def print_pages(samples: Sequence[Mapping[str, Any]]) -> None:
    """Print sample pages, two tables for each shopper."""
    for number, sample in enumerate(samples, 1):
        who = f"shopper {number}" + (f" ({sample['audience']})" if sample["audience"] else "")
        for name, about in (("before", "as the log's strategy shows it"), ("after", "as the trained strategy does")):
            page = sample[name]
            offer = f", {page['discount']:.0%} off" if page["discount"] else ""
            spoken = "first_line" in (page["slots"] or [{}])[0]
            columns = ("item", "price", *(("tuned writer", "optimised writer") if spoken else ("line",)))
            rows = [
                (
                    slot["title"] + (" [ad]" if slot["ad"] else ""),
                    f"{slot['price']:.2f}",
                    *((slot["first_line"],) if spoken else ()),
                    slot["line"] or "-",
                )
                for slot in page["slots"]
            ]
            console().print(text_table(f"{who}: the page {about}{offer}", columns, rows, right=(1,)))


def page_request(rows: pd.DataFrame, columns: list[str]) -> dict[str, Any]:
    """Return a logged page as a serving request, with the pages that its shopper saw before.

    Args:
        rows: Impressions, in any order; the shopper is the first whose second page comes in them.
        columns: Of the shoppers' features.
    """
    pages = rows.drop_duplicates(["visit_id", "page"])["shopper_id"]
    own = rows[rows["shopper_id"] == pages[pages.duplicated()].iloc[0]]
    seen = [page for _, page in own.groupby(["visit_id", "page"], sort=False)]
    seen = sorted(seen, key=lambda page: (page["timestamp"].iloc[0], page["page"].iloc[0]))[: LATEST + 1]
    now = seen[-1].iloc[0]
    shopper = {name: now[name] for name in columns if name in now.index and pd.notna(now[name])}
    return {
        "timestamp": now["timestamp"].isoformat(),
        "page": int(now["page"]),
        "shopper": {name: value.item() if hasattr(value, "item") else value for name, value in shopper.items()},
        "history": [_answered(page.sort_values("position")) for page in seen[:-1]],
    }


def _answered(page: pd.DataFrame) -> dict[str, Any]:
    """Return a logged page as a page of a request's history."""
    ads = page["position"][page["placement"] == "ad"].tolist()
    copy = page["copy"].astype(object).where(page["copy"].notna(), None).tolist()
    return {
        "timestamp": page["timestamp"].iloc[0].isoformat(),
        "page": int(page["page"].iloc[0]),
        "slate": page["item_id"].astype(str).tolist(),
        "ad": {"slot": int(ads[0])} if ads else None,
        "offer": int(page["offer"].iloc[0]),
        "copy": copy,
        **{name: page[name].tolist() for name in ("clicked", "converted", "revenue")},
    }


def print_decision(decision: dict[str, Any], items: pd.DataFrame) -> None:
    """Print a decided page with the first reason for each item."""
    titles = dict(zip(items["item_id"].astype(str), items["title"], strict=True))
    lines, why = decision["copy"], decision["why"]["slate"]
    rows = [
        (
            titles[item],
            line or "-",
            "-" if reasons is None or not reasons["reasons"] else reasons["reasons"][0]["words"],
        )
        for item, line, reasons in zip(decision["slate"], lines, why, strict=True)
        if item is not None
    ]
    who = f", for {decision['audience']}" if decision.get("audience") else ""
    console().print(text_table(f"One decision{who}", ("item", "line", "first of its reasons"), rows))
