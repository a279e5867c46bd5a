"""Reasons against games worked out by hand, and against the bundle whose pages they explain."""

import numpy as np
import pytest

from hawker.policies import page_reasons
from hawker.policies.export import random_pages
from hawker.policies.page_bundle import PageBundle
from hawker.policies.page_draw import LineTable, Picks
from hawker.policies.page_reasons import ITEM, LOGIT_BOUND, SHOPPER, PageReasons, Pages, picks_of
from hawker.policies.slate import LOGIT_BOUND as TORCH_BOUND
from hawker.shop.catalog import Catalog
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.simulators.small import small_tables

SMALL = 1e-3
"""Logits so small that what bounds them does not bend them."""


def catalog() -> Catalog:
    return Catalog.from_items(small_tables(6)[1])


def scaled(items: Catalog) -> np.ndarray:
    return (items.vectors.astype(float) - items.centre) / items.spread


def by_hand(**more: np.ndarray) -> dict[str, np.ndarray]:
    """A strategy of width 1 that knows two things of a shopper, clicks and visits, and heeds clicks alone.

    Its query is nearly the first of them times ``SMALL``.
    """
    items = catalog()
    group = [ITEM.index(name if name in ("price", "category") else "features") for name in columns(items)]
    return {
        "usual": np.zeros((1, 2)),
        "column_group": np.array([SHOPPER.index("history"), SHOPPER.index("visits")]),
        "item_group": np.array(group),
        "bidder": np.array([True, True, True, False, False, False]),
        "centre": np.zeros(2),
        "spread": np.ones(2),
        "query.0.weight": np.array([[SMALL, 0.0]]),
        "query.0.bias": np.zeros(1),
        "query.1.weight": np.ones((1, 1)),
        "query.1.bias": np.zeros(1),
        "head.affinity_weight.weight": np.zeros((1, 1)),
        "head.affinity_weight.bias": np.zeros(1),
        "item.weight": np.zeros((3, items.width)),
        "item.own": np.zeros((6, 3)),
    } | more


def columns(items: Catalog) -> list[str]:
    return [*items.features.numeric, *(name for name, known in items.features.categories.items() for _ in known)]


def page(shopper: list[list[float]], picks: Picks, affinity: np.ndarray | None = None) -> Pages:
    """Pages on which items 0 to 4 may be shown."""
    n = len(shopper)
    candidates = np.broadcast_to(np.arange(6), (n, 6))
    mask = np.broadcast_to(np.arange(6) < 5, (n, 6))
    affinity = np.zeros((n, 6)) if affinity is None else affinity
    return Pages(Context(np.array(shopper, np.float32), candidates, mask, affinity), picks, mask)


def shares(told: page_reasons.Reasons, row: int, slot: int) -> dict[str, float]:
    return dict(zip(told.groups, told.size[row, slot].tolist(), strict=True))


def others(values: np.ndarray, place: int, among: range = range(5)) -> np.ndarray:
    """Return what a value is above the mean of the others that may be shown."""
    return values[place] - np.mean([values[j] for j in among if j != place], axis=0)


def test_shares_of_a_linear_actor_are_weight_times_difference():
    """Logit = weights . features + own + 0.5 affinity: each group's share is its part less that of the others' mean."""
    items, generator = catalog(), np.random.default_rng(1)
    weights, own = SMALL * generator.normal(size=items.width), SMALL * generator.normal(size=6)
    arrays = by_hand()
    arrays["item.weight"][1], arrays["item.own"][:, 1] = weights, own
    arrays["head.affinity_weight.bias"] = np.array([0.5])
    affinity = SMALL * generator.normal(size=(2, 6))
    pages = page([[1.0, 2.0], [-3.0, 0.5]], Picks(np.array([[2, 0], [4, EMPTY]])), affinity)
    told = PageReasons(arrays, items, None).explain(pages)["slate"]
    assert told.groups == ("history", "visits", "category", "price", "item", "affinity")
    parts, names = scaled(items) * weights, np.array(columns(items))
    for row, slot, place in ((0, 0, 2), (0, 1, 0), (1, 0, 4)):
        expected = {
            "history": 0.0,  # it is heeded, but no item has a key
            "visits": 0.0,
            "category": others(parts[:, names == "category"], place).sum(),
            "price": others(parts[:, names == "price"], place).sum(),
            "item": others(own, place),
            "affinity": 0.5 * others(affinity[row], place),
        }
        assert shares(told, row, slot) == pytest.approx(expected, abs=1e-10)
        assert told.score[row, slot] == pytest.approx(sum(expected.values()), abs=1e-10)
        assert told.usual[row, slot] == pytest.approx(0.0, abs=1e-10)
    assert told.there.tolist() == [[True, True], [True, False]]
    assert (told.size[1, 1] == 0).all()
    assert told.score[1, 1] == 0


def test_shopper_and_item_share_what_they_do_together():
    """Logit = q(shopper) x key(price): half of what the two do together is each one's, by hand."""
    items, price = catalog(), 2.0
    arrays = by_hand(usual=np.array([[1.0, 0.0], [3.0, 5.0]]))  # clicks are 2 on average
    arrays["item.weight"][0, columns(items).index("price")] = price
    told = PageReasons(arrays, items, None).explain(page([[10.0, 7.0]], Picks(np.array([[3]]))))["slate"]
    away = price * others(scaled(items)[:, columns(items).index("price")], 3)
    assert shares(told, 0, 0) == pytest.approx(
        {
            "history": SMALL * (10 - 2) * away / 2,
            "visits": 0.0,
            "category": 0.0,
            "price": SMALL * (10 + 2) / 2 * away,
            "item": 0.0,
            "affinity": 0.0,
        },
        rel=1e-3,
        abs=1e-12,
    )
    assert told.usual[0, 0] == pytest.approx(0.0, abs=1e-9)


def test_offers_ads_and_lines_by_hand():
    items = catalog()
    arrays = by_hand(usual=np.array([[2.0, 0.0]])) | {
        "head.offer.weight": np.array([[1.0], [0.0], [-2.0]]), "head.offer.bias": SMALL * np.array([1.0, 2.0, 4.0]),
        "head.no_ad.weight": np.array([[3.0]]), "head.no_ad.bias": np.zeros(1),
        "head.ad_query.weight": np.zeros((1, 1)), "head.ad_query.bias": np.zeros(1),
        "head.slot.weight": np.zeros((2, 1)), "head.slot.bias": np.array([0.0, SMALL]),
        "head.line_query.weight": np.ones((1, 1)), "head.line_query.bias": np.zeros(1),
    }  # fmt: skip
    arrays["item.own"][:, 2] = SMALL * np.array([5.0, 1.0, 0.0, 9.0, 9.0, 9.0])  # as ads
    table = LineTable(np.array([[0.0], [4.0], [2.0]]), np.zeros(3), SMALL * np.array([[1.0], [2.0], [6.0]]))
    picks = Picks(np.array([[2, 0], [0, 2]]), np.array([EMPTY, 0]), np.array([EMPTY, 0]), np.array([2, 0]),
                  np.array([[1, EMPTY], [0, 0]]))  # fmt: skip
    told = PageReasons(arrays, items, table).explain(page([[6.0, 0.0], [2.0, 4.0]], picks))
    # The logits of tiers are (1, 2, 4) + clicks * (1, 0, -2); with 6 clicks the last is 4 - 12 against (7 + 2) / 2.
    offer = told["offer"]
    assert offer.score[0, 0] / SMALL == pytest.approx(-8 - 4.5, rel=1e-4)
    assert offer.usual[0, 0] / SMALL == pytest.approx(0 - 2.5, rel=1e-4)
    assert offer.size[0, 0] / SMALL == pytest.approx([-10, 0], rel=1e-4)
    # No ad has 3 * clicks + log 3, the bidders 5, 1 and 0.
    ad, bidding = told["ad"], 20 * np.log(3) / 20
    assert ad.size[0, 0, :2] / SMALL == pytest.approx([12, 0], rel=1e-3)
    assert (ad.size[0, 0, 2:] == 0).all()
    assert ad.usual[0, 0] == pytest.approx(SMALL * (6 - 2) + bidding, rel=1e-3)
    assert ad.score[1, 0] == pytest.approx(SMALL * 5 - (SMALL * (1 + 0 + 6) + bidding) / 3, rel=1e-3)
    assert shares(ad, 1, 0)["item"] / SMALL == pytest.approx(5 - 0.5, rel=1e-3)
    assert told["slot"].there.tolist() == [[False], [True]]
    assert told["slot"].score[1, 0] == pytest.approx(-SMALL, rel=1e-4)
    # Lines: (clicks + tier's) * (0, 4, 2); tiers are 3 on average. Slot 0 says line 1, slot 1 none, which is the last.
    copy = told["copy"]
    assert copy.groups == ("history", "visits", "offer")
    assert copy.size[0, 0] / SMALL == pytest.approx([(6 - 2) * 3, 0, (6 - 3) * 3], rel=1e-3)
    assert copy.size[0, 1] == pytest.approx([0, 0, 0], abs=1e-8)
    assert told["slate"].there.tolist() == [[True, True], [False, True]]  # the ad's slot is explained as an ad


def test_a_page_without_a_choice_has_no_reasons():
    pages = page([[1.0, 1.0]], Picks(np.array([[3]])))
    alone = pages._replace(context=Context(pages.context.shopper, pages.context.candidates,
                                           np.arange(6)[None] == 3, pages.context.affinity))  # fmt: skip
    told = PageReasons(by_hand(), catalog(), None).explain(alone)["slate"]
    assert not told.there.any()
    assert (told.size == 0).all()


@pytest.fixture(scope="module")
def bundle(served_pages) -> PageBundle:
    return PageBundle.load(served_pages / "bundle")


@pytest.fixture(scope="module")
def pages(bundle) -> Pages:
    plain = random_pages(bundle.shop, 12, np.random.default_rng(2))
    memory = np.random.default_rng(3).normal(0, 0.1, (12, bundle.width)).astype(np.float32)
    memory[:, -1] = np.arange(12)
    context = bundle.read(plain, memory, np.linspace(0, 9, 12), np.zeros(12))
    return Pages(context, picks_of(context, bundle.decide(context, np.random.default_rng(4))), context.mask)


def test_shares_sum_to_what_the_bundle_s_own_logits_say(bundle, pages):
    told = bundle.reasons.explain(pages)
    assert list(told) == ["slate", "ad", "slot", "offer", "copy"]
    slate, mask, picks = bundle.scores(pages.context).slate, pages.context.mask, pages.picks
    could = mask & (np.arange(mask.shape[1]) != picks.ad[:, None])
    own = np.take_along_axis(slate, picks.slate.clip(0), 1)
    rest = np.where(could, slate, 0).sum(1, keepdims=True) - own
    there = told["slate"].there
    assert there.any()
    np.testing.assert_allclose(
        told["slate"].score[there], (own - rest / np.maximum(could.sum(1)[:, None] - 1, 1))[there], atol=1e-4
    )
    for part in told.values():
        np.testing.assert_allclose(part.size.sum(2), part.score - part.usual, atol=1e-9)
        assert np.isfinite(part.size).all()
    assert np.abs(told["slate"].size).max() > 0.01
    assert told["slate"].groups[:4] == ("history", "seen", "visits", "shopper")


def test_the_same_pages_have_the_same_reasons_alone_and_together(bundle, pages, monkeypatch):
    told, again = bundle.reasons.explain(pages), bundle.reasons.explain(pages)
    monkeypatch.setattr(page_reasons, "ENTRIES", 1)  # page by page
    alone, slot = bundle.reasons.explain(pages), np.arange(12) % bundle.size
    for part, found in told.items():
        assert np.array_equal(found.size, again[part].size)
        np.testing.assert_allclose(found.size, alone[part].size, atol=1e-9)
    one = bundle.reasons.explain_part(pages, "slate", slot)
    np.testing.assert_allclose(one.size[:, 0], told["slate"].size[np.arange(12), slot], atol=1e-9)


def test_a_group_that_is_ignored_gets_nothing(bundle, pages):
    """An actor that reads neither the features of shoppers nor those of items but their price."""
    kept = dict(bundle.reasons._a)
    own, price = kept["column_group"] == SHOPPER.index("shopper"), kept["item_group"] == ITEM.index("price")
    kept["query.0.weight"] = np.where(own, 0.0, kept["query.0.weight"])
    kept["level.weight"] = np.where(own, 0.0, kept["level.weight"])
    kept["item.weight"] = np.where(price, kept["item.weight"], 0.0)
    told = PageReasons(kept, bundle.shop.catalog, bundle._table).explain(pages)
    for part in told.values():
        np.testing.assert_allclose(part.size[..., part.groups.index("shopper")], 0.0, atol=1e-9)
    text = told["slate"].size[..., told["slate"].groups.index("text")]
    np.testing.assert_allclose(text, 0.0, atol=1e-9)
    assert np.abs(told["slate"].size[..., told["slate"].groups.index("price")]).max() > 1e-3


def test_a_group_in_place_of_itself_changes_nothing_and_of_another_page_s_something(bundle, pages):
    reasons, n = bundle.reasons, 12
    slot, own = np.zeros(n, np.int64), pages.picks.slate[:, :1]
    elsewhere, tier = np.roll(pages.context.shopper, 1, 0)[:, None], pages.picks.offer[:, None]
    for part, groups in reasons.groups.items():
        score, there = reasons.score(pages, part)[:, 0], reasons.there(pages)[part][:, 0]
        for group in groups:
            here = pages.context.shopper[:, None]
            place = pages.picks.ad[:, None] if part == "ad" else own
            same = reasons.replaced(pages, part, slot, group, here, place, tier)
            np.testing.assert_allclose(same[there, 0], score[there], atol=1e-9)
        moved = reasons.replaced(pages, part, slot, "history", elsewhere, own, tier)[:, 0]
        assert not there.any() or np.abs(moved - score)[there].max() > 1e-3


def test_decisions_are_picks():
    context = Context(np.zeros((2, 1)), np.array([[7, 3, 5], [1, 2, 9]]), np.ones((2, 3), bool), np.zeros((2, 3)))
    decision = Decision(np.array([[5, 7], [9, EMPTY]]), np.zeros(2), np.array([1, EMPTY]))
    found = picks_of(context, decision)
    assert found.slate.tolist() == [[2, 0], [2, EMPTY]]
    assert found.ad.tolist() == [0, EMPTY]
    assert LOGIT_BOUND == TORCH_BOUND
