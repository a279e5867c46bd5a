"""From an action to a page, by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.envs.page import (
    AD_PLACEMENT,
    COPYWRITING,
    RECOMMEND,
    STOREFRONT,
    Layout,
    Parts,
    Rules,
    decide,
    first_picks,
    ranking,
)
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError


@pytest.mark.parametrize(
    ("picks", "shown"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([2, 2, 1], [2, EMPTY, 1]),
        ([1, 1, 1], [1, EMPTY, EMPTY]),
        ([3, 0, 3], [EMPTY, 0, EMPTY]),  # 3 is not eligible
        ([4, 0, 1], [EMPTY, 0, 1]),  # there is no 4
        ([-1, 0, -7], [EMPTY, 0, EMPTY]),
        ([0, -1, 0], [0, EMPTY, EMPTY]),
        ([9, 0, 1], [EMPTY, 0, 1]),  # what is out of range takes no place from 0
    ],
)
def test_first_picks(picks, shown):
    mask = torch.tensor([[True, True, True, False]])
    assert first_picks(torch.tensor([picks]), mask).tolist() == [shown]


def test_picks_are_judged_page_by_page():
    mask = torch.tensor([[True, False], [False, True]])
    assert first_picks(torch.tensor([[0, 1], [0, 1]]), mask).tolist() == [[0, EMPTY], [EMPTY, 1]]


# Candidates of every page below: items 10..14 in places 0..4; place 4 is not eligible; 1 and 2 may be ads.
CONTEXT = Context(
    torch.zeros(1, 1), torch.arange(10, 15)[None], torch.tensor([[True, True, True, True, False]]), torch.zeros(1, 5)
)
ADS = torch.tensor([[False, True, True, False, False]])
NONE, X = 5, EMPTY


@pytest.mark.parametrize(
    ("slate", "ad", "slot", "shown", "own", "refused"),
    [
        ([0, 3, 1], NONE, 0, [10, 13, 11], X, 0),
        ([0, 3, 1], 2, 1, [10, 12, 11], 1, 0),  # the ad takes its slot
        ([0, 3, 1], 2, 0, [12, 13, 11], 0, 0),
        ([0, 3, 1], 1, 2, [10, 13, 11], 2, 0),  # the slate has it there as well: no repeat
        ([0, 3, 1], 1, 0, [11, 13, X], 0, 1),  # and elsewhere: the ad goes first, even from below
        ([1, 3, 0], 1, 2, [X, 13, 11], 2, 1),
        ([1, 1, 0], 1, 2, [X, X, 11], 2, 2),
        ([0, 3, 1], 3, 1, [10, 13, 11], X, 1),  # has no bid: the slate's own item stays
        ([0, 3, 1], 4, 1, [10, 13, 11], X, 1),  # not eligible
        ([0, 3, 1], 6, 1, [10, 13, 11], X, 1),  # no such place
        ([0, 3, 1], -1, 1, [10, 13, 11], X, 1),
        ([0, 3, 1], 2, 3, [10, 13, 11], X, 1),  # no such slot
        ([0, 3, 1], 2, -1, [10, 13, 11], X, 1),
        ([4, 3, 3], 2, 0, [12, 13, X], 0, 1),  # what stands under the ad does not matter
        ([4, 3, 3], NONE, 0, [X, 13, X], X, 2),
        ([-1, 3, -1], NONE, 0, [X, 13, X], X, 0),  # left empty on purpose
    ],
)
def test_slates_with_ads(slate, ad, slot, shown, own, refused):
    layout = Layout(Parts(ad=True), 3, 5, 1, 0)
    decision, counted = decide(layout, torch.tensor([[*slate, ad, slot]]), CONTEXT, ADS, None)
    assert decision.slate.tolist() == [shown]
    assert decision.ad.tolist() == [own]
    assert (decision.offer, decision.copy) == (None, None)
    assert counted.tolist() == [refused]


@pytest.mark.parametrize(
    ("given_", "ad", "slot", "shown", "own"),
    [
        ([3, 2, 0], NONE, 1, [13, 12, 10], X),
        ([3, 2, 0], 1, 0, [11, 13, 12], 0),
        ([3, 2, 0], 1, 1, [13, 11, 12], 1),
        ([3, 2, 0], 1, 2, [13, 12, 11], 2),
        ([3, 2, 0], 2, 0, [12, 13, 10], 0),  # what the ad's item leaves behind is closed up
        ([3, 2, 0], 2, 1, [13, 12, 10], 1),
        ([3, 2, 0], 2, 2, [13, 10, 12], 2),
        ([3, -1, -1], 1, 0, [11, 13, X], 0),
        ([3, -1, -1], 1, 2, [13, X, 11], 2),
        ([-1, -1, -1], 1, 1, [X, 11, X], 1),
        ([3, 2, 0], 0, 0, [13, 12, 10], X),  # has no bid
    ],
)
def test_given_rankings_with_ads(given_, ad, slot, shown, own):
    layout = Layout(AD_PLACEMENT, 3, 5, 1, 0)
    decision, refused = decide(layout, torch.tensor([[ad, slot]]), CONTEXT, ADS, torch.tensor([given_]))
    assert decision.slate.tolist() == [shown]
    assert decision.ad.tolist() == [own]
    assert refused.tolist() == [int(own == X and ad != NONE)]


@pytest.mark.parametrize(
    ("offer", "lines", "tier", "shown", "refused"),
    [
        (0, [7, 7, 7], 0, [X, X, X], 0),  # 7: none
        (2, [0, 6, 3], 2, [0, 6, 3], 0),
        (3, [0, 0, 0], 0, [0, 0, 0], 1),
        (-1, [8, -2, -1], 0, [X, X, X], 3),  # -1 is none
    ],
)
def test_offers_and_lines(offer, lines, tier, shown, refused):
    layout = Layout(Parts(slate=True, offer=True, copy=True), 3, 5, 3, 7)
    decision, counted = decide(layout, torch.tensor([[0, 1, 2, offer, *lines]]), CONTEXT, None, None)
    assert decision.offer.tolist() == [tier]
    assert decision.copy.tolist() == [shown]
    assert decision.ad is None
    assert counted.tolist() == [refused]


def test_an_empty_slot_has_no_line():
    layout = Layout(COPYWRITING, 3, 5, 1, 7)
    decision, refused = decide(layout, torch.tensor([[1, 2, 3]]), CONTEXT, None, torch.tensor([[3, X, 0]]))
    assert decision.slate.tolist() == [[13, X, 10]]
    assert decision.copy.tolist() == [[1, X, 3]]
    assert refused.tolist() == [0]


def test_layouts():
    assert Layout(STOREFRONT, 2, 5, 3, 7).values == [5, 5, 6, 2, 3, 8, 8]
    assert Layout(RECOMMEND, 2, 5, 3, 7).values == [5, 5]
    assert Layout(AD_PLACEMENT, 2, 5, 3, 7).values == [6, 2]
    assert Layout(COPYWRITING, 2, 5, 3, 7).values == [8, 8]
    parts = Layout(STOREFRONT, 2, 5, 3, 7).page.split(torch.arange(14).reshape(2, 7))
    assert {name: part[1].tolist() for name, part in parts.items()} == {
        "slate": [7, 8],
        "ad": [9],
        "slot": [10],
        "offer": [11],
        "copy": [12, 13],
    }


@given(st.data())
def test_whatever_is_asked_a_page_shows_eligible_items_once(data):
    size, choices = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    seed = data.draw(st.integers(0, 2**31))
    parts = data.draw(st.sampled_from([STOREFRONT, AD_PLACEMENT, COPYWRITING, Parts(ad=True), RECOMMEND]))
    generator = torch.Generator().manual_seed(seed)
    n, layout = 50, Layout(parts, size, choices, 2, 3)
    mask = torch.rand(n, choices, generator=generator) < 0.7
    ads = mask & (torch.rand(n, choices, generator=generator) < 0.5) if parts.ad else None
    ranked = None if parts.slate else ranking(torch.rand(n, choices, generator=generator), mask, size)
    candidates = torch.rand(n, 20, generator=generator).argsort(1)[:, :choices]
    context = Context(torch.zeros(n, 1), candidates, mask, torch.zeros(n, choices))
    actions = torch.randint(-2, choices + 3, (n, len(layout.values)), generator=generator)
    decision, refused = decide(layout, actions, context, ads, ranked)
    assert (refused >= 0).all()
    for i, slate in enumerate(decision.slate.tolist()):
        items = [item for item in slate if item != EMPTY]
        assert len(set(items)) == len(items)
        assert set(items) <= set(candidates[i][mask[i]].tolist())
        if parts.ad and decision.ad[i] != EMPTY:
            assert slate[decision.ad[i]] in candidates[i][ads[i]].tolist()


def test_rankings():
    score = torch.tensor([[1.0, 3.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True, True], [False, True, False, True]])
    assert ranking(score, mask, 3).tolist() == [[1, 2, 3], [1, 3, EMPTY]]
    assert ranking(score, mask, 6).tolist() == [[1, 2, 3, 0, EMPTY, EMPTY], [1, 3, EMPTY, EMPTY, EMPTY, EMPTY]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Parts(slate=False), "parts: nothing to decide; expected at least one of slate, ad, offer and copy"),
        (lambda: Rules(horizon=0), "rules.horizon: no days; got 0, expected a number of days above 0"),
        (lambda: Rules(horizon=-1), "rules.horizon: no days; got -1"),
        (lambda: Rules(horizon=math.nan), "rules.horizon: no days; got nan"),
        (lambda: Rules(ad_gap=0), "rules.ad_gap: bad gap; got 0, expected at least 1 page"),
        (lambda: Rules(ad_load=1.1), "rules.ad_load: not a share; got 1.1, expected a number from 0 to 1"),
        (lambda: Rules(ad_load=math.nan), "rules.ad_load: not a share; got nan"),
    ],
)
def test_what_cannot_be_meant(make, message):
    with pytest.raises(InputError) as caught:
        make()
    assert message in str(caught.value)
