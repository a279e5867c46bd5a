import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hawker.policies.baselines import LoggingClone, Popularity, PositionedSlate, RandomStrategy
from hawker.policies.slate import PlackettLuce
from hawker.shop.catalog import Catalog
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError

CATALOG = Catalog.from_items(pd.DataFrame({"item_id": ["a", "b", "c"]}))


def log(*rows: tuple[str, int, int]) -> pd.DataFrame:
    """Impressions from rows of (item_id, position, clicked)."""
    return pd.DataFrame(rows, columns=["item_id", "position", "clicked"])


def whole_catalog(n_items: int = 3) -> Context[Tensor]:
    candidates = torch.arange(n_items)[None]
    return Context(torch.zeros(1, 0), candidates, candidates >= 0, torch.zeros(1, n_items))


def first_slot(strategy: RandomStrategy | Popularity | LoggingClone) -> list[float]:
    """Return P(item in the first slot) of a page that shows the whole catalog."""
    return strategy.distribution(whole_catalog()).marginals(2, torch.Generator()).probability[0, 0].tolist()


def test_every_slate_of_the_random_strategy_is_equally_likely(every_slate):
    strategy, picks = RandomStrategy(3), every_slate(torch.ones(5).bool(), 3)
    page = whole_catalog(5).map(lambda array: array.expand(60, -1))
    log_prob = strategy.log_prob(page, Decision(picks, torch.zeros(60)))
    assert log_prob.tolist() == pytest.approx([-math.log(5 * 4 * 3)] * 60)


def test_popularity_by_hand():
    """CTR 0.4 is worth 10 impressions: a (3 + 4) / (3 + 10), b (1 + 4) / (7 + 10), c, never shown, 4 / 10."""
    rows = [("a", 0, 1)] * 3 + [("b", 1, 1)] + [("b", 0, 0)] * 6
    rates = np.array([7 / 13, 5 / 17, 4 / 10])
    popularity = Popularity.fit(log(*rows), CATALOG, 2)
    assert first_slot(popularity) == pytest.approx(rates**10 / (rates**10).sum())
    assert popularity.distribution(whole_catalog()).mode().tolist() == [[0, 2]]
    assert popularity.size == 2


def test_popularity_without_clicks_keeps_every_item_possible():
    popularity = Popularity.fit(log(("a", 0, 0), ("b", 0, 0), ("b", 0, 0)), CATALOG, 2)
    probability = first_slot(popularity)
    assert min(probability) > 0
    assert probability[2] > probability[0] > probability[1], "what was shown in vain falls behind"


def test_rates_far_apart_stay_within_what_float32_can_hold():
    popularity = Popularity(np.array([1.0, 1e-30, 1e-300]), 3)
    slate = Decision(torch.tensor([[2, 1, 0]]), torch.zeros(1))
    assert float(popularity.log_prob(whole_catalog(), slate)) == pytest.approx(-80, abs=2)


def test_a_clone_by_hand():
    """Counts by position with one pseudo-impression spread over three items; the last position was never logged."""
    rows = [("a", 0, 0)] * 3 + [("b", 0, 1)] + [("c", 1, 0)] * 2 + [("a", 7, 0)] * 9
    clone = LoggingClone.fit(log(*rows), CATALOG, 3, name="clone of bts")
    first, second = np.array([10, 4, 1]) / 15, np.array([1, 1, 7]) / 9
    assert (clone.name, clone.size) == ("clone of bts", 3)
    assert first_slot(clone) == pytest.approx(first)
    decision = Decision(torch.tensor([[0, 1, 2]]), torch.zeros(1))
    by_hand = first[0] * second[1] / (second[1] + second[2])
    assert float(clone.log_prob(whole_catalog(), decision)) == pytest.approx(math.log(by_hand), abs=1e-6)
    last = LoggingClone.fit(log(*rows), CATALOG, 3).distribution(whole_catalog()).logits[0, 2]
    assert last.tolist() == pytest.approx([-math.log(3)] * 3)


@pytest.mark.parametrize("fit", [Popularity.fit, LoggingClone.fit])
def test_a_log_with_an_item_that_the_catalog_lacks(fit):
    with pytest.raises(InputError, match="impressions: item not in the catalog; got 'z'"):
        fit(log(("a", 0, 0), ("z", 0, 1)), CATALOG, 2)


@st.composite
def slots(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int]]:
    """Logits (1, K, C) for every slot, a mask (1, C) and a slate that can be drawn."""
    size, n_candidates = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    logits = draw(st.lists(st.floats(-20, 20), min_size=size * n_candidates, max_size=size * n_candidates))
    mask = draw(st.lists(st.booleans(), min_size=n_candidates, max_size=n_candidates))
    picks = draw(st.permutations([place for place in range(n_candidates) if mask[place]]))[:size]
    shaped = torch.tensor(logits, dtype=torch.float64).reshape(1, size, n_candidates)
    return shaped, torch.tensor([mask]), picks + [EMPTY] * (size - len(picks))


@given(slots())
def test_positioned_slates_agree_with_a_loop(page: tuple[Tensor, Tensor, list[int]]):
    logits, mask, picks = page
    left, exact = {place for place in range(mask.shape[1]) if mask[0, place]}, 0.0
    for slot, pick in enumerate(picks):
        if left:
            weights = {place: math.exp(float(logits[0, slot, place])) for place in left}
            exact += math.log(weights[pick] / sum(weights.values()))
            left.remove(pick)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        log_prob = PositionedSlate(logits.to(dtype), mask).log_prob(torch.tensor([picks]))
        assert log_prob.dtype == dtype
        assert float(log_prob) == pytest.approx(exact, abs=tolerance)


@given(slots())
def test_one_row_of_logits_for_all_slots_is_plackett_luce(page: tuple[Tensor, Tensor, list[int]]):
    logits, mask, picks = page
    positioned = PositionedSlate(logits[:, :1].expand_as(logits), mask)
    plain = PlackettLuce(logits[:, 0], mask, logits.shape[1])
    slate = torch.tensor([picks])
    assert float(positioned.log_prob(slate)) == pytest.approx(float(plain.log_prob(slate)), abs=1e-9)
    assert float(positioned.log_prob(positioned.mode())) == pytest.approx(float(plain.log_prob(plain.mode())), abs=1e-9)


def test_the_mode_of_positioned_slates_is_greedy_slot_by_slot():
    logits = torch.tensor([[[0.0, 3.0, 1.0, 2.0], [0.0, 9.0, 2.0, 1.0], [5.0, 9.0, 9.0, 1.0]]])
    everything, without_first = torch.tensor([[True] * 4]), torch.tensor([[False, True, True, False]])
    assert PositionedSlate(logits, everything).mode().tolist() == [[1, 2, 0]]
    assert PositionedSlate(logits, without_first).mode().tolist() == [[1, 2, EMPTY]]


def test_a_distribution_is_not_used_up():
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    distribution = PositionedSlate(logits, torch.ones(4, 5, dtype=torch.bool))
    before = distribution.logits.clone()
    picks = distribution.sample(torch.Generator().manual_seed(1))
    assert torch.equal(distribution.log_prob(picks), distribution.log_prob(picks))
    assert torch.equal(distribution.mode(), distribution.mode())
    assert torch.equal(distribution.logits, before)
