"""What a log shows too seldom, counted by hand."""

import pandas as pd
import pytest
import torch

from hawker.shop.catalog import Catalog
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.simulators.support import ENOUGH, Support

SHOWN = pd.DataFrame(
    {
        "visit_id": ["u"] * 3 + ["v"] * 3,
        "page": [0, 0, 1, 0, 0, 0],
        "item_id": ["a", "b", "a", "a", "c", "b"],
        "placement": ["organic", "ad", "organic", "ad", "organic", "organic"],
        "copy": ["now", None, "hello", "now", "now", None],
        "offer": [2, 2, 0, 2, 2, 2],
    }
)


@pytest.fixture
def catalog() -> Catalog:
    return Catalog.from_items(pd.DataFrame({"item_id": list("abcd"), "price": [1.0, 2.0, 3.0, 4.0]}))


def test_shows_are_counted_by_item_ad_line_and_page(catalog, tmp_path):
    lines = Lines.from_impressions(SHOWN, load_encoder("hashed", torch.device("cpu"), tmp_path))
    support = Support.from_impressions(SHOWN, catalog, lines, 4)
    assert support.items.tolist() == [3, 2, 1, 0]
    assert support.ads.tolist() == [1, 1, 0, 0]
    assert support.lines.tolist() == [1, 3]  # "hello", "now"
    assert support.offers.tolist() == [1, 0, 2, 0]  # pages, not impressions
    assert support.visit == 2  # u's
    support.save(tmp_path / "support.safetensors")
    again = Support.load(tmp_path / "support.safetensors", torch.device("cpu"))
    assert all(torch.equal(getattr(again, name), value) for name, value in vars(support).items())


def test_a_log_without_copy_offers_and_ads(catalog):
    bare = SHOWN.drop(columns=["copy", "offer"]).assign(placement="organic")
    support = Support.from_impressions(bare, catalog, None, 1)
    assert support.offers.tolist() == [3]
    assert support.ads.sum() == 0
    assert support.lines.shape == (0,)


KNOWN, HALF = ENOUGH, ENOUGH / 2
SUPPORT = Support(
    items=torch.tensor([2 * KNOWN, KNOWN, HALF, 0.0]),
    ads=torch.tensor([KNOWN, HALF, 0.0, 0.0]),
    lines=torch.tensor([KNOWN, 0.0]),
    offers=torch.tensor([KNOWN, HALF]),
    visit=torch.tensor(9.0),
)


@pytest.mark.parametrize(
    ("slate", "ad", "copy", "offer", "missing"),
    [
        ([0, 1, EMPTY], None, None, None, 0.0),
        ([0, 2, 3], None, None, None, 1.5),
        ([EMPTY, EMPTY, EMPTY], EMPTY, [EMPTY] * 3, 9, 0.0),  # nothing is shown
        ([0, 1, 2], 0, None, None, 0.5),  # item 0 is known as an ad
        ([0, 1, 2], 1, None, None, 1.0),  # item 1 by half
        ([0, 1, 2], EMPTY, None, None, 0.5),
        ([0, 1, 2], None, [0, 1, 1], None, 2.0),  # line 1 is new with either item
        ([0, 1, 2], None, [EMPTY, 0, 0], None, 0.5),
        ([0, 1, 2], None, [2, 0, 0], None, 1.5),  # a line that the bank of the log does not hold
        ([0, 1, 2], None, None, 1, 1.5),
        ([0, 1, EMPTY], None, None, 2, 2.0),  # a tier that the log does not know
        ([3, 1, EMPTY], 0, [1, 0, EMPTY], 1, 1.5),  # all at once: the rarest counts
    ],
)
def test_a_page_misses_as_much_as_the_rarest_part_of_each_impression(slate, ad, copy, offer, missing):
    def one(value):
        return None if value is None else torch.tensor([value])

    decision = Decision(one(slate), torch.zeros(1), one(ad), one(offer), one(copy))
    assert SUPPORT.missing(decision).tolist() == [missing]


def test_two_logs_are_counted_as_one(catalog):
    one, two = SHOWN[SHOWN["visit_id"] == "u"], SHOWN[SHOWN["visit_id"] == "v"]
    both, whole = (Support.from_impressions(rows, catalog, None, 4) for rows in (one, SHOWN))
    both = both.plus(Support.from_impressions(two, catalog, None, 4))
    assert all(torch.equal(getattr(both, name), value) for name, value in vars(whole).items())
