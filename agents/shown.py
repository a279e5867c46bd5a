"""What a strategy shows to whom: for which items, audiences and discounts lines are worth writing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hawker.agents.writer_data import Assignment, item_brief
from hawker.envs.follow import follow
from hawker.envs.page import Rules
from hawker.policies.page_actor import LikeliestPages, PageStrategy
from hawker.policies.strategist import Strategist, audience_of
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.audience_world import AudienceWorld

PLACE = ["item_id", "audience", "discount"]
"""What a line is written for."""

ANYBODY = 0.5
"""Share of what is written that is for anybody: it stands in for every audience that has no lines of its own."""


def shown_places(
    world: AudienceWorld,
    strategy: PageStrategy | LikeliestPages | Strategist,
    discounts: Sequence[float],
    known: Collection[str],
    rules: Rules,
    shoppers: int,
    seed: int,
) -> pd.DataFrame:
    """Follow shoppers, and count what they are shown.

    Args:
        world: Where; strategies that are no strategist do not see its audiences.
        strategy: What decides.
        discounts: Share of the price that each tier of the offer takes off.
        known: Audiences that lines can be written for; those of others count as anybody, "".
        rules: What the shop holds to, with a finite horizon.
        shoppers: How many.
        seed: Of everything that is drawn.

    Returns:
        The columns ``PLACE`` and ``count`` (impressions), the most shown place first.
    """
    items, labels = world.builder.catalog.item_ids, world.audiences.labels
    counter = _Counter(strategy, len(labels), len(items), len(discounts), world.device)
    generator = torch.Generator(world.device).manual_seed(seed)
    follow(world, counter, world.arrive(shoppers, generator), RewardSpec(), rules, generator)
    counts = counter.counts.reshape(len(labels), len(items), len(discounts)).cpu().numpy()
    who, what, tier = counts.nonzero()
    names = np.array([label if label in known else "" for label in labels], dtype=object)
    places = pd.DataFrame(
        {
            "item_id": np.array(items, dtype=object)[what],
            "audience": names[who],
            "discount": np.asarray(discounts, np.float64)[tier],
            "count": counts[who, what, tier],
        }
    )
    return _most(places.groupby(PLACE, sort=False)["count"].sum().reset_index())


class _Counter:
    """A strategy whose pages are counted, shape (A * I * T,) impressions."""

    def __init__(
        self,
        strategy: PageStrategy | LikeliestPages | Strategist,
        audiences: int,
        items: int,
        tiers: int,
        device: torch.device,
    ) -> None:
        self.name, self._strategy, self._items, self._tiers = strategy.name, strategy, items, tiers
        self.counts = torch.zeros(audiences * items * tiers, dtype=torch.float64, device=device)

    def propose(
        self, context: Context[Tensor], generator: torch.Generator, ad_mask: Tensor | None = None
    ) -> Decision[Tensor]:
        bare, audience = audience_of(context)
        seen = context if isinstance(self._strategy, Strategist) else bare
        decision = self._strategy.propose(seen, generator, ad_mask)
        first = audience * (self._items * self._tiers)
        first = first if decision.offer is None else first + decision.offer
        place = decision.slate.clamp(min=0) * self._tiers + first[:, None]
        self.counts.index_add_(0, place.reshape(-1), (decision.slate != EMPTY).double().reshape(-1))
        return decision


def most_shown(places: pd.DataFrame, n: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return the places to write for, and what share of impressions they cover.

    Args:
        places: What ``shown_places`` returned.
        n: How many, at most: half of them for anybody, the others for audiences of their own.

    Returns:
        The columns of ``places``; and the shares of impressions with lines for their own audience (``own``), and with
        those or with lines for anybody (``any``).
    """
    everybody = places.groupby(["item_id", "discount"], sort=False)["count"].sum().reset_index().assign(audience="")
    everybody = _most(everybody)[: max(1, int(ANYBODY * n))]
    own = places[places["audience"] != ""][: n - len(everybody)]
    chosen = pd.concat([everybody, own], ignore_index=True)[[*PLACE, "count"]]
    total, by_item = places["count"].sum(), pd.MultiIndex.from_frame(places[["item_id", "discount"]])
    has_own = pd.MultiIndex.from_frame(places[PLACE]).isin(pd.MultiIndex.from_frame(own[PLACE]))
    has_any = by_item.isin(pd.MultiIndex.from_frame(everybody[["item_id", "discount"]])) | has_own
    covered = {name: float(places["count"][has].sum() / total) for name, has in (("own", has_own), ("any", has_any))}
    return chosen, covered


def drawn_places(places: pd.DataFrame, n: int, seed: int) -> pd.DataFrame:
    """Return n places, drawn as often as they are shown; every other one is for anybody, as many of a bank's are."""
    generator = np.random.default_rng(seed)
    rows = generator.choice(len(places), n, p=(places["count"] / places["count"].sum()).to_numpy())
    drawn = places.iloc[rows].reset_index(drop=True)
    return drawn.assign(audience=drawn["audience"].where(np.arange(n) % 2 == 0, ""))


def assignments_of(places: pd.DataFrame, items: pd.DataFrame, surface: str, voice: tuple[str, ...]) -> list[Assignment]:
    """Return what the writer is told of places, from the log's items."""
    table = {str(item["item_id"]): item for item in items.to_dict("records")}
    return [
        Assignment(str(item), item_brief(table[str(item)], surface, str(audience), float(discount), voice))
        for item, audience, discount in places[PLACE].itertuples(index=False)
    ]


def _most(places: pd.DataFrame) -> pd.DataFrame:
    """Return places with the most shown first, equals by name."""
    by = [name for name in PLACE if name in places]
    ranked: pd.DataFrame = places.sort_values(["count", *by], ascending=[False, *[True] * len(by)], ignore_index=True)
    return ranked
