"""The clone of a log of whole pages: its rates, and the probability of what it draws."""

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.policies.baselines import LoggingClone
from hawker.policies.page_clone import PageClone
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY
from hawker.simulators.small import small_tables, small_world

LINES = ("cheap", "fine")


@pytest.fixture(scope="module")
def log() -> pd.DataFrame:
    """400 pages of 2 slots: an ad in every fourth, item 5 three times of four, else item 1, mostly at the lower slot.

    Every second page has an offer, and says "cheap"; others say "fine" at the upper slot and nothing, or something
    that nobody knows, below.
    """
    rows = []
    generator = np.random.default_rng(0)
    for page in range(400):
        ad = page % 4 == 0
        slot = 0 if page % 12 == 0 else 1
        for position in range(2):
            own = ad and position == slot
            item = (1 if page % 16 == 0 else 5) if own else int(generator.choice([0, 2, 3], p=[0.6, 0.3, 0.1]))
            offer = page % 2
            line = "cheap" if offer else "fine" if position == 0 else None if page % 4 else "unknown"
            rows.append(
                {"visit_id": page, "page": 0, "position": position, "item_id": f"item-{item}", "offer": offer}
                | {"placement": "ad" if own else "organic", "copy": line}
            )
    return pd.DataFrame(rows)


def clone_of(log: pd.DataFrame, *, ad: bool = True, offer: bool = True, lines: tuple[str, ...] = LINES) -> PageClone:
    catalog = small_world(n_items=6, size=2).builder.catalog
    return PageClone.fit(LoggingClone.fit(log, catalog, 2), log, catalog, ad, offer, lines)


def context_of(n: int, mask: torch.Tensor | None = None) -> Context[torch.Tensor]:
    candidates = torch.tensor([5, 4, 3, 2, 1, 0]).expand(n, -1)
    mask = torch.ones(n, 6, dtype=torch.bool) if mask is None else mask.expand(n, -1)
    return Context(torch.zeros(n, 4), candidates, mask, torch.zeros(n, 6))


def test_pages_come_at_the_rates_of_the_log(log):
    page = clone_of(log).propose(context_of(20_000), torch.Generator().manual_seed(0))
    ad = page.ad != EMPTY
    assert float(ad.float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float((page.ad[ad] == 0).float().mean()) == pytest.approx(1 / 3, abs=0.03)
    items = page.slate[ad].gather(1, page.ad[ad][:, None]).squeeze(1)
    assert set(items.tolist()) == {1, 5}
    assert float((items == 1).float().mean()) == pytest.approx(1 / 4, abs=0.03)
    assert float(page.offer.float().mean()) == pytest.approx(0.5, abs=0.02)
    assert (page.copy[page.offer == 1] == 0).all()
    free = page.copy[page.offer == 0]
    assert set(free.unique().tolist()) == {EMPTY, 1}
    assert (page.slate[:, 0] != page.slate[:, 1]).all()
    assert (page.slate != EMPTY).all()


def test_log_probabilities_are_those_of_the_draws(log):
    clone, context = clone_of(log), context_of(60_000)
    page = clone.propose(context, torch.Generator().manual_seed(1))
    assert set(page.log_probs) == {"slate", "ad", "offer", "copy"}
    torch.testing.assert_close(clone.log_prob(context, page), page.log_prob)
    whole = torch.cat([page.slate, page.ad[:, None], page.offer[:, None], page.copy], 1)
    kinds, which, count = whole.unique(dim=0, return_inverse=True, return_counts=True)
    chance = torch.zeros(len(kinds)).index_put((which,), page.log_prob.exp())
    often = chance * len(whole) > 50
    assert often.sum() > 10
    error = (chance * (1 - chance) / len(whole)).sqrt()
    assert ((count / len(whole) - chance).abs() < 5 * error)[often].all()
    assert float(chance.sum()) == pytest.approx(1.0, abs=0.02)


def test_what_is_not_eligible_is_not_shown(log):
    """Item 5 is not: item 1 is the ad as often as there is one; with neither there is none."""
    page = clone_of(log).propose(context_of(4_000, torch.tensor([0, 1, 1, 1, 1, 1]).bool()), torch.Generator())
    assert not (page.slate == 5).any()
    assert float((page.ad != EMPTY).float().mean()) == pytest.approx(0.25, abs=0.03)
    page = clone_of(log).propose(context_of(50, torch.tensor([0, 1, 1, 1, 0, 1]).bool()), torch.Generator())
    assert (page.ad == EMPTY).all()
    assert page.log_prob.isfinite().all()
    short = clone_of(log).propose(context_of(50, torch.tensor([0, 0, 0, 1, 0, 0]).bool()), torch.Generator())
    assert (short.slate == torch.tensor([2, EMPTY])).all()
    assert (short.copy[:, 1] == EMPTY).all()
    assert short.log_prob.isfinite().all()


def test_parts_that_are_not_wanted_are_left_out(log):
    clone = clone_of(log, ad=False, offer=False, lines=())
    page = clone.propose(context_of(10), torch.Generator())
    assert (page.ad, page.offer, page.copy) == (None, None, None)
    assert set(page.log_probs) == {"slate"}
    without = log.drop(columns=["offer", "copy"]).assign(placement="organic")
    page = clone_of(without).propose(context_of(10), torch.Generator())
    assert (page.offer, page.copy) == (None, None)
    assert (page.ad == EMPTY).all()
    alone = clone_of(log, offer=False).propose(context_of(2_000), torch.Generator())
    assert set(alone.copy.unique().tolist()) == {EMPTY, 0, 1}


def test_a_shop_of_the_small_tables_is_cloned():
    impressions, _ = small_tables(n_items=6, size=2)
    clone = clone_of(impressions)
    assert clone.size == 2
    assert clone.name == "clone"
