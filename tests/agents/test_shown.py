"""What pages show to whom: counted by hand, and what is written for it."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.agents.page_world import read
from hawker.agents.shown import PLACE, assignments_of, drawn_places, most_shown, shown_places
from hawker.envs.page import Rules
from hawker.policies.baselines import RandomStrategy
from hawker.shop.audiences import Audiences
from hawker.shop.reward import RewardSpec
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.store import load_shoppers

DISCOUNTS = (0.0, 0.1, 0.1)


class Watched(RandomStrategy):
    """Random pages with random offers, which are written down as they were shown."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.widths: set[int] = set()

    def propose(self, context, generator, ad_mask=None):
        self.widths.add(context.shopper.shape[1])
        decision = super().propose(context, generator)
        offer = torch.randint(0, 3, (len(decision.slate),), generator=generator)
        return dataclasses.replace(decision, offer=offer)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world(remembering) -> AudienceWorld:
    shoppers = load_shoppers(remembering / "run" / "shoppers", torch.device("cpu"))
    return AudienceWorld(read(shoppers, shoppers.world("train"), RewardSpec()), Audiences(("kitchen",)))


def test_what_is_shown_is_counted(world):
    """By hand: the same shoppers, page by page."""
    known = {"new", "returning, likes kitchen"}
    strategy = Watched(world.size)
    places = shown_places(world, strategy, DISCOUNTS, known, Rules(horizon=5.0), 40, 3)
    assert strategy.widths == {world.world.builder.shopper.width}  # it does not see audiences
    again, generator = Watched(world.size), seeded(3)
    here = world.arrive(40, generator)
    counts: dict[tuple[str, str, float], int] = {}
    day = torch.zeros(40)
    while len(day):
        decision = again.propose(here.context, generator)
        for audience, slate, offer in zip(here.context.shopper[:, -1], decision.slate, decision.offer, strict=True):
            label = world.audiences.labels[int(audience)]
            for item in slate.tolist():
                key = (world.builder.catalog.item_ids[item], label if label in known else "", DISCOUNTS[int(offer)])
                counts[key] = counts.get(key, 0) + 1
        here, outcome = world.respond(here, decision, generator)
        day = day + outcome.days.masked_fill(outcome.gone, 0.0)
        stay = ~outcome.gone & (day < 5.0)
        here, day = here.take(stay), day[stay]
    rows = places[[*PLACE, "count"]].itertuples(index=False, name=None)
    found = {(item, audience, discount): n for item, audience, discount, n in rows}
    assert found == counts
    assert (places["count"].diff().dropna() <= 0).all()
    assert {"new", ""} <= set(places["audience"])


SHOWN = pd.DataFrame(
    [
        ("a", "new", 0.0, 50),
        ("a", "returning", 0.0, 30),
        ("b", "", 0.1, 12),
        ("b", "new", 0.1, 6),
        ("c", "new", 0.0, 2),
    ],
    columns=[*PLACE, "count"],
)


def test_what_is_shown_most_is_written_for():
    chosen, covered = most_shown(SHOWN, 4)
    assert list(chosen.itertuples(index=False, name=None)) == [
        ("a", "", 0.0, 80),
        ("b", "", 0.1, 18),
        ("a", "new", 0.0, 50),
        ("a", "returning", 0.0, 30),
    ]
    assert covered == {"own": pytest.approx(0.8), "any": pytest.approx(0.98)}
    alone, covered = most_shown(SHOWN, 1)
    assert list(alone["item_id"]) == ["a"]
    assert covered == {"own": 0.0, "any": pytest.approx(0.8)}
    everything, covered = most_shown(SHOWN, 100)
    assert len(everything) == 3 + 4
    assert covered == {"own": pytest.approx(0.88), "any": 1.0}


def test_places_are_drawn_as_often_as_they_are_shown():
    drawn = drawn_places(SHOWN, 40_000, 7)
    assert len(drawn) == 40_000
    assert (drawn["audience"][1::2] == "").all()
    shares = drawn.groupby("item_id").size() / len(drawn)
    assert shares.to_dict() == pytest.approx({"a": 0.8, "b": 0.18, "c": 0.02}, abs=0.01)
    own = drawn[::2].groupby(["item_id", "audience"]).size() / 20_000
    assert own["a", "returning"] == pytest.approx(0.3, abs=0.01)
    assert drawn.equals(drawn_places(SHOWN, 40_000, 7))
    assert not drawn.equals(drawn_places(SHOWN, 40_000, 8))


def test_the_writer_is_told_of_the_place():
    items = pd.DataFrame({"item_id": [1, 2], "title": ["Pot", "Hat"], "price": [3.0, np.nan]})
    items["category"] = ["kitchen", None]
    places = pd.DataFrame([("2", "new", 0.1), ("1", "", 0.0)], columns=PLACE)
    one, other = assignments_of(places, items, "headline", ("Plain words",))
    assert (one.item_id, one.brief.title, one.brief.audience, one.brief.discount) == ("2", "Hat", "new", 0.1)
    assert (other.item_id, other.brief.category, other.brief.price) == ("1", "kitchen", 3.0)
    assert other.brief.voice == ("Plain words",)
    assert one.brief.surface == "headline"
