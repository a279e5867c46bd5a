from dataclasses import replace

import numpy as np
import pytest
import torch

from hawker.benchmarks import search
from hawker.benchmarks.bazaar import searching
from hawker.benchmarks.search import QUICK, SearchConfig, bench_search, ndcg
from hawker.policies.shopkeeper import Habits, Shopkeeper
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.simulators.search_bazaar import SearchBazaar, open_bazaar


@pytest.fixture(scope="module")
def world() -> SearchBazaar:
    found = open_bazaar("search", torch.device("cpu"))
    assert isinstance(found, SearchBazaar)
    return found


def test_ndcg_by_hand():
    grades = np.array([[3, 2, 0, 1, 0], [0, 0, 0, 0, 3]])
    eligible = np.array([True, True, True, True, False])
    discount = 1 / np.log2(np.arange(2, 6))
    slate = np.array([[2, 0, EMPTY, 1], [0, 1, 3, 2], [0, 1, 2, 3]])
    found = ndcg(slate, np.array([0, 0, 1]), grades, eligible)
    ideal = 7 * discount[0] + 3 * discount[1] + 1 * discount[2]
    assert found[0] == pytest.approx((7 * discount[1] + 3 * discount[3]) / ideal)
    assert found[1] == pytest.approx((7 * discount[0] + 3 * discount[1] + 1 * discount[2]) / ideal) == 1.0
    assert found[2] == 1.0  # nothing that is wanted can be shown


def test_no_page_is_better_than_the_best(world: SearchBazaar):
    grades, eligible = world.relevance.numpy(), search._stocked(world)
    best = search._ranked(grades.astype(np.float32), eligible)
    every = np.arange(len(grades))
    assert ndcg(best, every, grades, eligible) == pytest.approx(1.0)
    random = search._ranked(np.random.default_rng(0).random(grades.shape, np.float32), eligible)
    assert ndcg(random, every, grades, eligible).mean() < 0.15
    assert eligible[best].all()


def test_the_shops_own_search_ranks_by_bm25_then_by_popularity(world: SearchBazaar):
    popularity = torch.tensor(world.items.table["popularity"].to_numpy(), dtype=torch.float32)
    strategy = Shopkeeper("bm25", world.size, searching(popularity), Habits(exploration=0.0))
    here = world.arrive(300, torch.Generator().manual_seed(0))
    slate = strategy.propose(here.context, torch.Generator().manual_seed(1)).slate
    asks = here.state["query"] != EMPTY
    score = world.lexical[here.state["query"].clamp(min=0)].gather(1, slate) * asks[:, None]
    assert (score.diff(dim=1) <= 1e-6).all()
    units = popularity[slate[~asks]]
    assert (units.diff(dim=1) <= 0).all()


def test_pages_that_are_graded_are_the_first_of_visits_with_queries(world: SearchBazaar):
    popularity = torch.tensor(world.items.table["popularity"].to_numpy(), dtype=torch.float32)
    strategy = Shopkeeper("bm25", world.size, searching(popularity), Habits(exploration=0.0))
    config = replace(QUICK, graded=100, pages=3)
    query, slate = search._pages(world, strategy, config, torch.Generator().manual_seed(2))
    assert slate.shape == (len(query), world.size)
    assert 30 < len(query) < 150
    assert (query >= 0).all()
    graded = ndcg(slate, query, world.relevance.numpy(), search._stocked(world))
    assert 0.3 < graded.mean() < 0.9


def test_figures_are_over_seeds_or_over_visits():
    def detail(seed: int, better: float) -> dict:
        arms = {"strategist": 10.0 + better, "strategist, query unread": 8.0, "bm25": 9.0, "popularity": 5.0}
        graded = {"strategist": 0.6 + better, "bm25": 0.5, "match": 0.7, "unread": 0.1}
        return {
            "seed": seed,
            "arms": {name: {"reward": value} for name, value in arms.items()},
            "ndcg": graded,
            "visits": 400,
            "gain_error": 0.01,
        }

    one = search._figures([detail(1, 0.1)])
    assert one["search.ndcg_gain"]["value"] == pytest.approx(0.2)
    assert one["search.ndcg_gain"]["low"] == pytest.approx(0.2 - 0.0196)
    assert one["search.ndcg_gain"]["n"] == 400
    two = search._figures([detail(1, 0.1), detail(2, 0.2)])
    assert two["search.ndcg_gain"]["value"] == pytest.approx(0.25)
    assert two["search.ndcg_gain"]["n"] == 2
    assert two["search.reward_gain_unread"]["value"] == pytest.approx(2.15)
    assert two["search.reward_gain_bm25"]["value"] == pytest.approx(1.15)


def test_what_cannot_be_run():
    with pytest.raises(InputError, match=r"search\.seeds: bad seeds"):
        bench_search(SearchConfig(seeds=()), print)
    with pytest.raises(InputError, match=r"search\.variant: a bazaar without a search box; got 'cascade'"):
        bench_search(SearchConfig(variant="cascade"), print)


@pytest.mark.slow
def test_the_quick_form_finds_more_than_it_would_unread(tmp_path, monkeypatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path))
    report = bench_search(QUICK, lambda line: None)
    figures = report["figures"]
    assert figures["search.ndcg_strategist"]["value"] > 2 * figures["search.ndcg_unread"]["value"]
    assert figures["search.reward_gain_unread"]["value"] > 0
    assert set(report["arms"]) == {"strategist", "strategist, query unread", "bm25", "popularity"}
