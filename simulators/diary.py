"""Logs of a strategy at work in the bazaar: all shoppers see their own next page at once, until their time is up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from hawker.shop.artefacts import write_directory, write_json
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.tables import write_table
from hawker.simulators.bazaar import DAY, BazaarWorld
from hawker.simulators.search_bazaar import SearchBazaar
from hawker.simulators.world import Shoppers

START = pd.Timestamp("2026-01-05", tz="UTC")
"""The first day of every simulated log, a Monday."""

JOINING = 0.6
"""Share of the days in which shoppers come for the first time, evenly."""

AT_ONCE = 4096
"""Shoppers simulated together: they bound the memory; their rows stand together in the files."""

PARTS = ("slate", "ad", "offer", "copy")


class Proposer(Protocol):
    """What writes a log: a strategy, known by what it does."""

    name: str

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        """Draw one decision per page."""
        ...


Columns = dict[str, Tensor]
"""Pages by column, (n, ...) each: those of ``hawker.simulators.bazaar_pages.Pages`` without features, and candidates,
revenue, price, propensity (n, K) and log_prob_PART (n,) where the strategy gave them, and query (n,) in a shop with a
search box."""


def simulate(
    world: BazaarWorld, strategy: Proposer, shoppers: int, days: int, generator: torch.Generator
) -> tuple[Columns, Tensor]:
    """Let shoppers come for a number of days.

    Args:
        world: Where.
        strategy: What decides.
        shoppers: How many join, evenly over the first 60% of the days.
        days: Length of the log; no visit begins later.
        generator: Of everything that is drawn.

    Returns:
        The pages, sorted by shopper and time, and the numbers of each shopper's feature values, (shoppers, features).
    """
    here = world.arrive(shoppers, generator)
    device, horizon = world.device, days * DAY
    first = (torch.rand(shoppers, generator=generator, device=device) * JOINING * days).long() * DAY
    who, features = torch.arange(shoppers, device=device), here.state["features"]
    pages: list[Columns] = []
    while len(who):
        decision = strategy.propose(here.context, generator)
        after, outcome = world.respond(here, decision, generator)
        pages.append(_page(world, here, decision, outcome.clicked, outcome.converted, outcome.revenue))
        pages[-1] |= {"shopper": who, "clock": first + here.state["clock"]}
        stay = ~outcome.gone & (first + after.state["clock"] < horizon)
        here, who, first = after.take(stay), who[stay], first[stay]
    whole = {name: torch.cat([page[name] for page in pages]) for name in pages[0]}
    order = torch.argsort(whole["shopper"] * (horizon + DAY) + whole["clock"])
    return {name: value[order].cpu() for name, value in whole.items()}, features.cpu()


def _page(
    world: BazaarWorld,
    here: Shoppers,
    decision: Decision[Tensor],
    clicked: Tensor,
    converted: Tensor | None,
    revenue: Tensor | None,
) -> Columns:
    slate, n = decision.slate, len(decision.slate)
    none = torch.full((n,), EMPTY, device=slate.device)
    page: Columns = {
        **({"query": here.state["query"]} if "query" in here.state else {}),
        "page": here.state["page"],
        "slate": slate,
        "copy": torch.full_like(slate, EMPTY) if decision.copy is None else decision.copy,
        "ad": none if decision.ad is None else decision.ad,
        "offer": torch.zeros_like(none) if decision.offer is None else decision.offer,
        "clicked": clicked.bool(),
        "converted": torch.zeros_like(clicked).bool() if converted is None else converted.bool(),
        "revenue": torch.zeros_like(clicked) if revenue is None else revenue,
        "price": world.price_shown(decision),
        "candidates": here.context.candidates.masked_fill(~here.context.mask, EMPTY).to(torch.int16),
    }
    if decision.propensity is not None:
        page["propensity"] = decision.propensity
    for part, value in {"slate": decision.log_prob, **(decision.log_probs or {})}.items():
        page[f"log_prob_{part}"] = value.clamp(max=0.0)
    return page


def write_logs(
    world: BazaarWorld,
    strategy: Proposer,
    out: Path,
    shoppers: int,
    days: int,
    seed: int,
    update: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Any]:
    """Simulate a log and write it: impressions, items, shoppers, pages and ``meta.json``, whole or not at all.

    Rows of a shopper stand together, in the order of time.

    Args:
        world: Where.
        strategy: What decides.
        out: The logs directory to write; logs that stand there are replaced.
        shoppers: How many come.
        days: Length of the log.
        seed: Decides everything that is drawn.
        update: Called with the shoppers done and in all.

    Returns:
        What ``meta.json`` holds: where the log comes from, and its rows, visits, clicks and purchases.

    Raises:
        InputError: ``out`` cannot be written, or there is nothing to simulate.
    """
    for name, number in (("shoppers", shoppers), ("days", days)):
        if number < 1:
            raise InputError("too few", where=name, got=number, expected="at least 1")
    generator = torch.Generator(world.device).manual_seed(seed)
    rows, counts = {"items": world.parameters.shop.items, "shoppers": shoppers}, np.zeros(3, np.int64)
    with write_directory(out, "logs") as scratch:
        write_table(world.items.table, scratch / "items.parquet")
        with contextlib.ExitStack() as stack:
            writers: dict[str, pq.ParquetWriter] = {}
            for start in range(0, shoppers, AT_ONCE):
                some = min(AT_ONCE, shoppers - start)
                pages, features = simulate(world, strategy, some, days, generator)
                for name, table in _tables(world, pages, features, start, int(counts[0])):
                    if name not in writers:
                        path = scratch / f"{name}.parquet"
                        writers[name] = stack.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
                    writers[name].write_table(table)
                    rows[name] = rows.get(name, 0) + (table.num_rows if name not in ("items", "shoppers") else 0)
                counts += [int((pages["page"] == 0).sum()), int(pages["clicked"].sum()), int(pages["converted"].sum())]
                update(start + some, shoppers)
        visits, clicks, purchases = map(int, counts)
        meta: dict[str, Any] = {
            "source": "bazaar",
            "variant": world.parameters.name,
            "parameters": world.digest,
            "strategy": strategy.name,
            "shoppers": shoppers,
            "days": days,
            "seed": seed,
            "rows": rows,
            "visits": visits,
            "clicks": clicks,
            "purchases": purchases,
        }
        write_json(scratch / "meta.json", meta)
    return meta


def _tables(
    world: BazaarWorld, pages: Columns, features: Tensor, first_shopper: int, first_visit: int
) -> Iterator[tuple[str, pa.Table]]:
    """Yield the tables of some shoppers' pages, (n, ...), named."""
    known = world.parameters.features
    ids = pa.array([f"s{first_shopper + i:07d}" for i in range(len(features))])
    values = {feature.name: _coded(features[:, i], feature.values) for i, feature in enumerate(known)}
    yield "shoppers", pa.table({"shopper_id": ids, **values})

    visit = first_visit - 1 + (pages["page"] == 0).cumsum(0)
    items = pa.array(world.builder.catalog.item_ids)
    head: dict[str, Any] = {"visit_id": pa.array(visit.numpy()), "page": pa.array(pages["page"].int().numpy())}
    log_probs = {f"log_prob_{part}": pages[f"log_prob_{part}"] for part in PARTS if f"log_prob_{part}" in pages}
    yield (
        "pages",
        pa.table(
            {
                **head,
                **{name: pa.array(value.double().numpy()) for name, value in log_probs.items()},
                "candidates": _lists(pages["candidates"], items),
            }
        ),
    )

    filled = pages["slate"] != EMPTY
    row, position = filled.nonzero(as_tuple=True)
    numbers, clicked, converted = row.numpy(), pages["clicked"][filled], pages["converted"][filled]
    is_ad = position == pages["ad"][row]
    bid = world.items.table["bid"].to_numpy(np.float64)[pages["slate"][filled].numpy()]
    moment = START.value // 1000 + pages["clock"] * 1_000_000
    who = pages["shopper"][row].numpy()
    table = {
        **{name: column.take(pa.array(numbers)) for name, column in head.items()},
        "position": pa.array(position.int().numpy()),
        "shopper_id": pa.DictionaryArray.from_arrays(pa.array(who.astype(np.int32)), ids),
        "timestamp": pa.array(moment[row].numpy()).cast(pa.timestamp("us", "UTC")),
        "item_id": pa.DictionaryArray.from_arrays(pa.array(pages["slate"][filled].short().numpy()), items),
        "placement": _coded(is_ad.long(), ("organic", "ad")),
        "clicked": pa.array(clicked.char().numpy()),
        "converted": pa.array(converted.char().numpy()),
        "revenue": pa.array(pages["revenue"][filled].double().numpy().round(2)),
        "copy": _coded(pages["copy"][filled], world.lines),
        "offer": pa.array(pages["offer"][row].int().numpy()),
        "price_shown": pa.array(pages["price"][filled].double().numpy().round(2)),
        "ad_bid": pa.array(bid, mask=~is_ad.numpy()),
    }
    if "query" in pages:
        assert isinstance(world, SearchBazaar)
        table["query"] = _coded(pages["query"][row], world.queries)
    if "propensity" in pages:
        table["propensity"] = pa.array(pages["propensity"][filled].double().numpy().clip(max=1.0))
    for i, feature in enumerate(known):
        table[feature.name] = _coded(features[torch.from_numpy(who), i], feature.values)
    yield "impressions", pa.table(table)


def _coded(numbers: Tensor, texts: tuple[str, ...]) -> pa.DictionaryArray:
    """Return texts by their numbers (n,); ``EMPTY`` is null."""
    indices = numbers.numpy().astype(np.int16)
    return pa.DictionaryArray.from_arrays(pa.array(indices, mask=indices == EMPTY), pa.array(texts, pa.string()))


def _lists(numbers: Tensor, ids: pa.Array) -> pa.ListArray:
    """Return a list of ids per row of numbers (n, C); ``EMPTY`` is left out."""
    kept = numbers != EMPTY
    offsets = np.concatenate([[0], kept.sum(1).cumsum(0).numpy()]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), ids.take(pa.array(numbers[kept].numpy())))
