"""The myopic strategy against a search over every page it could show."""

import itertools
from typing import NamedTuple

import pytest
import torch

from hawker.agents.myopic import MyopicPages
from hawker.shop.decision import EMPTY
from hawker.shop.reward import RewardSpec


class Tables(NamedTuple):
    """Log-odds of items (n, I), and what lines (n, L) and offers (n, T) add."""

    items: torch.Tensor
    lines: torch.Tensor | None
    offers: torch.Tensor | None


class Told:
    """A reader whose tables are given."""

    def __init__(self, click: Tables, purchase: Tables | None, size: int, offers: int) -> None:
        self.size, self.offers, self._click, self._purchase = size, offers, click, purchase

    def worth(self, shopper, items, reward, tier=0, lines=None):
        def said(part):
            odds = part.items.gather(1, items)[:, :, None]
            if part.offers is not None:
                odds = odds + part.offers[:, tier, None, None]
            if part.lines is None or lines is None:
                return odds
            return odds + torch.nn.functional.pad(part.lines[:, lines], (0, 1))[:, None]

        bought = 0.0 if self._purchase is None else said(self._purchase).sigmoid()
        return said(self._click).sigmoid() * (reward.click + reward.conversion * bought)


def context_of(n: int, candidates: int):
    from hawker.shop.context import Context

    order = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i))[:candidates] for i in range(n)])
    return Context(torch.zeros(n, 1), order, torch.ones(order.shape, dtype=torch.bool), torch.zeros(order.shape))


def drawn(seed: int, n: int) -> Tables:
    generator = torch.Generator().manual_seed(seed)
    items, lines, offers = (torch.randn(n, width, generator=generator) for width in (6, 4, 3))
    offers[:, 0] = 0.0
    return Tables(items, lines, offers)


@pytest.mark.parametrize("reward", [RewardSpec(), RewardSpec(click=0.2, conversion=3.0)])
def test_no_line_and_no_offer_would_pay_more(reward):
    n, lines = 12, torch.tensor([0, 1, 3])
    click, purchase = drawn(1, n), drawn(2, n)
    context = context_of(n, 4)
    decision = MyopicPages("greedy", Told(click, purchase, 2, 3), reward, lines).propose(context, torch.Generator())

    def value(b: int, item: int, line: int, tier: int) -> float:
        odds = [
            t.items[b, item] + t.offers[b, tier] + (0 if line == EMPTY else t.lines[b, line]) for t in (click, purchase)
        ]
        p, bought = (float(torch.sigmoid(o)) for o in odds)
        return p * (reward.click + reward.conversion * bought)

    for b in range(n):
        ranked = sorted(context.candidates[b].tolist(), key=lambda item: -value(b, item, EMPTY, 0))
        slate = decision.slate[b].tolist()
        assert slate == ranked[:2]
        best = max(
            sum(value(b, item, line, tier) for item, line in zip(slate, said, strict=True))
            for tier in range(3)
            for said in itertools.product([EMPTY, *lines.tolist()], repeat=2)
        )
        got = sum(
            value(b, item, line, int(decision.offer[b]))
            for item, line in zip(slate, decision.copy[b].tolist(), strict=True)
        )
        assert got == pytest.approx(best, rel=1e-5)
    assert decision.ad is None


def test_shoppers_of_clicks_alone_get_items_alone():
    click = Tables(drawn(1, 5).items, None, None)
    context = context_of(5, 1)
    decision = MyopicPages("greedy", Told(click, None, 2, 1), RewardSpec()).propose(context, torch.Generator())
    assert decision.slate[:, 0].tolist() == context.candidates[:, 0].tolist()
    assert (decision.slate[:, 1] == EMPTY).all()
    assert (decision.copy == EMPTY).all()
    assert (decision.offer == 0).all()
    assert (decision.log_prob == 0).all()
