import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.agents.page_world import read
from hawker.policies.baselines import RandomStrategy
from hawker.shop.artefacts import CHECKSUMS, write_directory
from hawker.shop.catalog import Catalog
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.shop.search import ASKED, COLUMNS
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.query_world import Asked, QueryTally, QueryWorld, brought
from hawker.simulators.reader import OWN
from hawker.simulators.search_bazaar import SearchBazaar, open_bazaar
from hawker.simulators.store import FittedShoppers, load_shoppers

CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def shoppers(searching: Path) -> FittedShoppers:
    return load_shoppers(searching / "run" / "shoppers", CPU)


@pytest.fixture(scope="module")
def learned(shoppers: FittedShoppers) -> QueryWorld:
    world = shoppers.searched(shoppers.world("train"))
    assert isinstance(world, QueryWorld)
    return world


@pytest.fixture(scope="module")
def gold() -> SearchBazaar:
    world = open_bazaar("search", CPU)
    assert isinstance(world, SearchBazaar)
    return world


def test_what_is_asked_for_is_that_of_the_log(shoppers: FittedShoppers, searching: Path):
    rows = shoppers.read_part("train")
    visits = rows.drop_duplicates("visit_id")["query"]
    assert shoppers.asked is not None
    assert shoppers.builder.search is not None
    counted = Counter(visits.dropna())
    assert dict(zip(shoppers.asked.texts, shoppers.asked.visits, strict=True)) == {
        text: n for text, n in counted.items() if shoppers.builder.search.asked(text)
    }
    assert shoppers.asked.silent + sum(shoppers.asked.visits) == len(visits)
    assert list(shoppers.asked.visits) == sorted(shoppers.asked.visits, reverse=True)
    assert len(shoppers.asked.texts) > 20


def test_shoppers_read_back_search_alike(shoppers: FittedShoppers, tmp_path: Path):
    with write_directory(tmp_path / "again", "shoppers") as scratch:
        shoppers.save(scratch)
    again = load_shoppers(tmp_path / "again", CPU)
    assert again.asked == shoppers.asked
    assert again.builder.search is not None
    assert shoppers.builder.search is not None
    texts = shoppers.asked.texts if shoppers.asked else ()
    assert np.array_equal(again.builder.search.match(texts), shoppers.builder.search.match(texts))
    assert again.builder.shopper == shoppers.builder.shopper
    assert set(COLUMNS) <= set(again.builder.shopper.numeric)


def test_learned_shoppers_have_learned_that_what_matches_is_clicked(shoppers: FittedShoppers):
    for role in ("train", "judge"):
        for model in shoppers.ensembles[role].models:
            assert float(model.click.affinity_effect.detach()) > 0.0


@pytest.mark.parametrize("inside", ["learned", "gold"])
def test_contexts_tell_what_is_typed(inside: str, shoppers: FittedShoppers, learned: QueryWorld, gold: SearchBazaar):
    world = learned if inside == "learned" else shoppers.searched(gold)
    assert isinstance(world, QueryWorld)
    here, draws, seen = world.arrive(400, generator()), generator(1), 0.0
    start, strategy = world.builder.shopper.numeric.index(ASKED), RandomStrategy(world.size)
    for _ in range(4):
        query, context = here.state["query"], here.context
        asks = query != EMPTY
        seen += float(asks.float().mean()) / 4
        texts = [None if number == EMPTY else world.queries[number] for number in query.tolist()]
        assert world.builder.search is not None
        columns, match = world.builder.search.columns(texts), world.builder.search.match(texts)
        assert context.shopper.shape[1] == world.builder.shopper.width
        told = context.shopper[:, start : start + len(COLUMNS)]
        torch.testing.assert_close(told, torch.from_numpy(columns))
        torch.testing.assert_close(context.affinity, torch.from_numpy(match).gather(1, context.candidates))
        assert all(len(set(row)) == world.choices for row in context.candidates.tolist())
        assert context.mask.all()
        before = here
        here, outcome = world.respond(here, strategy.propose(context, draws), draws)
        assert outcome.leave is not None
        stays = ~outcome.leave
        for one, two in ((query, here.state["query"]), (context.candidates, here.context.candidates)):
            assert torch.equal(one[stays], two[stays])
        assert not torch.equal(before.state["query"], here.state["query"])
    assert seen == pytest.approx(0.4, abs=0.1)


def test_what_matches_best_is_among_the_candidates(learned: QueryWorld, shoppers: FittedShoppers):
    here = learned.arrive(300, generator(3))
    asks = here.state["query"] != EMPTY
    seen = here.context.candidates[asks]
    best = learned._match[here.state["query"][asks]]
    never = torch.ones(best.shape[1], dtype=torch.bool)
    never[shoppers.arrivals["train"].candidates.unique()] = False
    best = best.masked_fill(never, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :10]
    assert (seen[:, :, None] == best[:, None]).any(1).float().mean() > 0.95
    # Something is left to chance: the world's own candidates fill the rest.
    assert (here.context.affinity[asks] < here.context.affinity[asks].amax(1, keepdim=True) - 0.5).float().mean() > 0.1


def test_nothing_is_brought_where_everything_is_a_candidate(shoppers: FittedShoppers):
    world = shoppers.world("train")
    world.choices = len(shoppers.builder.catalog)
    everything = shoppers.searched(world)
    assert isinstance(everything, QueryWorld)
    assert everything._found.shape[1] == 0


def test_the_learned_world_answers_to_the_match(learned: QueryWorld):
    """The same slate for the same shoppers: with a match of each item, clicks are those of the heads' effect."""
    here = learned.arrive(512, generator(4))
    strategy = RandomStrategy(learned.size)
    decision = strategy.propose(here.context, generator(5))
    silent = replace(here, context=replace(here.context, affinity=torch.zeros_like(here.context.affinity)))
    one, two = (learned.respond(who, decision, generator(6))[1].click_probability for who in (here, silent))
    match = (here.context.candidates[:, None] == decision.slate[:, :, None]).float()
    match = (match * here.context.affinity[:, None]).sum(2)
    assert isinstance(learned.world, LearnedWorld)
    assert ((one > two) == (match > 0))[match.abs() > 0.1].all()
    none = here.state["query"] == EMPTY
    assert torch.equal(one[none], two[none])


def test_the_reader_adds_the_match_to_what_items_are_worth(shoppers: FittedShoppers, gold: SearchBazaar):
    for world in (shoppers.world("judge"), gold):
        seen = read(shoppers, world, RewardSpec(conversion=5.0))
        here = seen.arrive(100, generator(7))
        match = here.state[OWN + "affinity"]
        worth = here.context.affinity - match
        alone = seen.affinity(here.context.shopper, here.context.candidates)
        torch.testing.assert_close(worth, alone, atol=1e-4, rtol=1e-4)
        asks = here.state["query"] != EMPTY
        assert (match[asks].abs().amax(1) > 0.1).float().mean() > 0.5  # those in words that the log has
        assert not match[~asks].any()


def test_the_same_seed_the_same_queries(shoppers: FittedShoppers):
    def run() -> torch.Tensor:
        world = read(shoppers, shoppers.world("train"), RewardSpec())
        draws = generator(8)
        here, strategy = world.arrive(80, draws), RandomStrategy(world.size)
        for _ in range(3):
            here, _ = world.respond(here, strategy.propose(here.context, draws), draws)
        return torch.cat([here.context.affinity, here.state["query"][:, None].float()], 1)

    assert torch.equal(run(), run())


def test_a_step_never_waits_for_the_device(learned: QueryWorld, never_waiting):
    draws, strategy = generator(9), RandomStrategy(learned.size)
    here = learned.arrive(256, draws)
    decision = strategy.propose(here.context, draws)
    here, _ = learned.respond(here, decision, draws)
    with never_waiting():
        learned.respond(here, decision, draws)


def test_shops_without_queries_are_as_they_were(remembering: Path):
    shoppers = load_shoppers(remembering / "run" / "shoppers", CPU)
    assert shoppers.builder.search is None
    assert shoppers.asked is None
    world = shoppers.world("train")
    assert shoppers.searched(world) is world
    assert not set(COLUMNS) & set(shoppers.builder.shopper.numeric)
    assert not (remembering / "run" / "shoppers" / "search.json").exists()


def test_candidates_that_are_brought():
    found = torch.tensor([[7, 3, EMPTY], [EMPTY, EMPTY, EMPTY], [1, 2, 3]])
    own = torch.tensor([[1, 3, 5, 9], [4, 5, 6, 7], [1, 2, 3, 4]])
    mask = torch.tensor([[True, True, True, True], [True, False, True, True], [True, True, True, False]])
    candidates, open_ = brought(found, own, mask)
    assert candidates[0].tolist() == [7, 3, 1, 5]
    assert [item for item, may in zip(candidates[1].tolist(), open_[1].tolist(), strict=True) if may] == [4, 6, 7]
    assert [item for item, may in zip(candidates[2].tolist(), open_[2].tolist(), strict=True) if may] == [1, 2, 3]
    assert open_[0].all()


def test_queries_are_tallied_by_visits():
    items = pd.DataFrame({"item_id": ["a", "b"], "title": ["red kite", "blue lamp"]})
    rows = pd.DataFrame(
        {
            "visit_id": np.repeat(np.arange(60), 2),
            "query": np.repeat(np.array(["kite", None, "lamp", "zzz"], object)[np.arange(60) % 4], 2),
            "item_id": ["a", "b"] * 60,
            "position": [0, 1] * 60,
            "clicked": [1, 0] * 60,
        }
    )
    tally = QueryTally()
    for piece in (rows[:60], rows[60:], rows[:0], rows.drop(columns="query")):
        tally.add(piece)
    learned = tally.learned(items, Catalog.from_items(items), None)
    assert learned is not None
    search, asked = learned
    assert dict(zip(asked.texts, asked.visits, strict=True)) == {"kite": 15, "lamp": 15, "zzz": 15}
    assert asked.silent == 15
    assert search.match(["kite"])[0].argmax() == 0
    assert QueryTally().learned(items, Catalog.from_items(items), None) is None


@pytest.mark.parametrize(
    "values",
    [3, {}, {"texts": ["a"], "visits": [], "silent": 0}, {"texts": [], "visits": [], "silent": -1}],
)
def test_damaged_queries(values: object):
    with pytest.raises(InputError, match=r"q\.json: not queries of a log"):
        Asked.from_dict(values, "q.json")


def test_shoppers_without_their_search(searching: Path, tmp_path: Path):
    shutil.copytree(searching / "run" / "shoppers", tmp_path / "s")
    (tmp_path / "s" / "search.safetensors").unlink()
    with pytest.raises(InputError, match=r"search\.safetensors"):
        load_shoppers(tmp_path / "s", CPU)
    assert "search.json" in json.loads((searching / "run" / "shoppers" / CHECKSUMS).read_text())["files"]
