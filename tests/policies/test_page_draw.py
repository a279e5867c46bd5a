"""Pages drawn in NumPy: every page of a tiny shop is counted, and all agrees with torch's pages."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from hawker.policies.page import LineLogits, PageChoice, PageDistribution, PageLayout, PageLogits
from hawker.policies.page_draw import LineTable, PageScores, Picks, draw, log_probs, log_softmax, propensities
from hawker.shop.decision import EMPTY

LAYOUTS = [
    PageLayout(2),
    PageLayout(2, ad=True),
    PageLayout(3, ad=True, offers=2, lines=2),
    PageLayout(2, offers=3),
    PageLayout(2, lines=3),
    PageLayout(1, ad=True, lines=0),
    PageLayout(4, ad=True, offers=1, lines=1),
]


def made(
    layout: PageLayout, n: int, choices: int, seed: int, effects: bool = True
) -> tuple[PageScores, PageDistribution]:
    """One and the same random pages in both libraries."""
    source = np.random.default_rng(seed)
    mask = source.random((n, choices)) < 0.8
    bids = mask & (source.random((n, choices)) < 0.6)
    slate, ad, slot = source.normal(size=(n, choices)), source.normal(size=(n, choices + 1)), None
    of_ad = np.where(np.pad(bids, ((0, 0), (0, 1)), constant_values=True), ad, -np.inf)
    slot, offer = source.normal(size=(n, layout.size)), source.normal(size=(n, layout.offers))
    query = table = told = line = None
    if layout.lines is not None:
        rows = layout.lines + 1
        query, keys, bias = source.normal(size=(n, 3)), source.normal(size=(rows, 3)), source.normal(size=rows)
        by_tier = source.normal(size=(layout.offers, 3)) if layout.offers else None
        told = source.normal(size=(n, layout.lines)) if effects else None
        table = LineTable(keys, bias, by_tier)
        line = LineLogits(*(None if x is None else torch.from_numpy(x) for x in (query, keys, bias, by_tier, told)))
    scores = PageScores(
        mask,
        slate,
        log_softmax(of_ad) if layout.ad else None,
        log_softmax(slot) if layout.ad else None,
        log_softmax(offer) if layout.offers else None,
        query,
        told,
        table,
    )
    logits = PageLogits(
        torch.from_numpy(slate),
        torch.from_numpy(ad) if layout.ad else None,
        torch.from_numpy(slot) if layout.ad else None,
        torch.from_numpy(offer) if layout.offers else None,
        line,
    )
    return scores, PageDistribution(layout, logits, torch.from_numpy(mask), torch.from_numpy(bids))


def in_torch(picks: Picks) -> PageChoice:
    return PageChoice(*(None if part is None else torch.from_numpy(np.array(part)) for part in picks))


def in_numpy(page: PageChoice) -> Picks:
    return Picks(*(None if part is None else part.numpy() for part in page))


@pytest.mark.parametrize("layout", LAYOUTS, ids=range(len(LAYOUTS)))
@given(seed=st.integers(0, 2**31), choices=st.integers(1, 6), effects=st.booleans())
def test_log_probabilities_are_torchs(layout, seed, choices, effects):
    """Of pages drawn by either library, and of pages of any kind, possible or not."""
    scores, pages = made(layout, 5, choices, seed, effects)
    source = np.random.default_rng(seed)
    drawn = draw(scores, layout.size, source)
    ad = source.integers(EMPTY, choices, 5) if layout.ad else None
    any_kind = Picks(
        source.integers(EMPTY, choices, (5, layout.size)),
        ad,
        None if ad is None else np.where(ad == EMPTY, EMPTY, source.integers(0, layout.size, 5)),
        source.integers(0, layout.offers, 5) if layout.offers else None,
        None if layout.lines is None else source.integers(EMPTY, layout.lines, (5, layout.size)),
    )
    for picks in (drawn, in_numpy(pages.sample(torch.Generator().manual_seed(seed))), any_kind):
        expected, found = pages.log_probs(in_torch(picks)), log_probs(scores, picks)
        assert list(found) == list(expected)
        for part, value in expected.items():
            np.testing.assert_allclose(found[part], value.numpy(), rtol=0, atol=1e-9, err_msg=part)
    assert np.isfinite(np.sum(list(log_probs(scores, drawn).values()), 0)).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=range(len(LAYOUTS)))
def test_the_likeliest_page_is_torchs(layout):
    scores, pages = made(layout, 200, 6, 3)
    for found, expected in zip(draw(scores, layout.size, None), in_numpy(pages.mode()), strict=True):
        assert (found is None) == (expected is None)
        assert found is None or np.array_equal(found, expected)


def every_page(layout: PageLayout, choices: int) -> Picks:
    """Everything of the form of a page with an item in every slot, possible or not."""
    slates = list(itertools.product(range(choices), repeat=layout.size))
    ads = [(EMPTY, EMPTY), *itertools.product(range(choices), range(layout.size))] if layout.ad else [(EMPTY, EMPTY)]
    offers = range(max(layout.offers, 1))
    lines = list(itertools.product(range(EMPTY, layout.lines or 0), repeat=layout.size))
    lines = lines if layout.lines is not None else [(EMPTY,) * layout.size]
    rows = list(itertools.product(slates, ads, offers, lines))
    slate, ad, offer, line = (np.array(part) for part in zip(*rows, strict=True))
    return Picks(
        slate,
        ad[:, 0] if layout.ad else None,
        ad[:, 1] if layout.ad else None,
        offer if layout.offers else None,
        line if layout.lines is not None else None,
    )


@pytest.mark.parametrize("layout", [LAYOUTS[1], PageLayout(2, ad=True, offers=2, lines=1)], ids=["ad", "all"])
def test_pages_are_drawn_as_often_as_their_log_probabilities_say(layout):
    """Over all pages of three candidates that bid, one of them not eligible as an ad; 100,000 draws, chi-square."""
    n, scores = 100_000, made(layout, 1, 3, 0)[0]
    ad = log_softmax(np.array([[0.3, -np.inf, 0.9, 0.5]]))
    scores = scores._replace(mask=np.ones((1, 3), bool), ad=ad)
    every = every_page(layout, 3)
    rows = {name: value for name, value in scores._asdict().items() if name != "lines" and value is not None}
    of = lambda count: scores._replace(**{name: np.repeat(value, count, 0) for name, value in rows.items()})  # noqa: E731
    expected = np.exp(np.sum(list(log_probs(of(len(every.slate)), every).values()), 0))
    assert expected.sum() == pytest.approx(1.0, abs=1e-12)
    drawn = draw(of(n), layout.size, np.random.default_rng(1))

    def key(picks: Picks) -> np.ndarray:
        columns = [part.reshape(len(part), -1) for part in picks if part is not None]
        return np.concatenate(columns, 1)

    places = {tuple(row): i for i, row in enumerate(key(every).tolist())}
    counts = np.bincount([places[tuple(row)] for row in key(drawn).tolist()], minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    often = expected * n >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum()) * n
    assert often.sum() > 10
    assert chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > 0.001


def test_propensities_by_hand():
    """Candidates of weights 1, 2, 3; the second is the ad, in the upper slot: the third item stands below it, 3/4."""
    scores = PageScores(
        np.ones((1, 3), bool),
        np.log([[1.0, 2.0, 3.0]]),
        log_softmax(np.log([[1.0, 4.0, 1.0, 2.0]])),
        log_softmax(np.log([[1.0, 3.0]])),
    )
    with_ad = Picks(np.array([[1, 2]]), np.array([1]), np.array([0]))
    assert propensities(scores, with_ad).tolist() == [pytest.approx([4 / 8 * 1 / 4, 3 / 4])]
    found = {name: float(np.exp(value[0])) for name, value in log_probs(scores, with_ad).items()}
    assert found == {"slate": pytest.approx(3 / 4), "ad": pytest.approx(1 / 8)}
    without = Picks(np.array([[2, 1]]), np.array([EMPTY]), np.array([EMPTY]))
    assert propensities(scores, without).tolist() == [pytest.approx([3 / 6, 2 / 3])]
    assert float(np.exp(log_probs(scores, without)["ad"][0])) == pytest.approx(2 / 8)


def test_an_ad_may_stand_below_an_empty_slot():
    """One candidate is the ad in the lowest slot; the other one fills the first, and nothing the second."""
    scores = PageScores(
        np.array([[True, True]]), np.zeros((1, 2)), np.array([[0.0, -np.inf, -np.inf]]), np.zeros((1, 3))
    )
    scores = scores._replace(slot=log_softmax(np.array([[-50.0, -50.0, 50.0]])))
    picks = draw(scores, 3, None)
    assert picks.slate.tolist() == [[1, EMPTY, 0]]
    assert np.sum(list(log_probs(scores, picks).values())) == pytest.approx(0.0)
    assert propensities(scores, picks)[0].tolist() == pytest.approx([1.0, 1.0, 1.0])
