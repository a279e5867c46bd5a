"""Classes of taste that learn no more, and the shoppers who live in them: each in one class, for a visit at least."""

from __future__ import annotations

import torch
from torch import Tensor

from hawker.simulators.frozen_pages import Page
from hawker.simulators.taste_classes import TasteClasses


class FrozenTastes:
    """What an answer owes to the shopper's class, up to rounding as `hawker.simulators.taste_classes` has it.

    Heads are clicks, clicks of anybody with these features, and purchases where there are any.
    """

    def __init__(self, tastes: TasteClasses) -> None:
        """Compute the tables of the classes, on their device."""
        with torch.no_grad():
            tables = tastes.utilities()
            click = tables[0]._replace(item=tables[0].item - tastes.click.base)
            heads, people = [click, click], [tastes.click.shopper.weight] * 2
            if tables[1] is not None and tastes.purchase is not None:
                heads.append(tables[1]._replace(item=tables[1].item - tastes.purchase.base))
                people.append(tastes.purchase.shopper.weight + tastes.match * tastes.click.shopper.weight)
            # One row for each item, or line, in each class: that of nothing comes first.
            self.classes, self.heads = click.item.shape[1], len(heads)
            items = torch.stack([head.item for head in heads], 2)
            lines = torch.stack([head.line[:-1] for head in heads], 2)
            self._items, self._lines = (
                torch.nn.functional.pad(part, (0, 0, 0, 0, 1, 0)).flatten(0, 1).contiguous() for part in (items, lines)
            )
            self._offers = torch.stack([head.offer for head in heads], 2).flatten(0, 1).contiguous()
            self._ads = torch.stack([head.ad for head in heads], 1).contiguous()
            self._person = torch.cat(people).T.contiguous()
            self._start, self._share = tastes.start.weight.T.contiguous(), tastes.share.detach().clone()
            self._reached, self._switch = tastes.share.softmax(0).cumsum(0), tastes.switch.sigmoid()

    def drawn(self, scaled: Tensor, uniform: Tensor) -> Tensor:
        """Return the classes of new shoppers with scaled features (n, D), from uniform draws (n,): shape (n,)."""
        reached = torch.addmm(self._share, scaled, self._start).softmax(1).cumsum(1)
        return self._first(reached, uniform)

    def moved(self, classes: Tensor, leave: Tensor, uniform: Tensor) -> Tensor:
        """Return the classes (n,) at the next page, from those before it, whether the visit ends, and uniform draws."""
        drawn = self._first(self._reached, uniform / self._switch)
        return torch.where(leave & (uniform < self._switch), drawn, classes)

    def _first(self, reached: Tensor, uniform: Tensor) -> Tensor:
        """Return the first class up to which the shares ``reached`` (n or 1, classes) exceed a draw."""
        return (reached[..., :-1] <= uniform[:, None]).sum(1)

    def believed(self, page: Page, classes: Tensor) -> Tensor:
        """Return what classes (n,) do to the log-odds of pages, constants left out, shape (n, K, heads)."""
        n, size = page.at.shape
        odds = self._items.index_select(0, torch.add(classes[:, None], page.at, alpha=self.classes).reshape(-1))
        odds = odds.view(n, size, self.heads)
        if page.said is not None:
            said = torch.add(classes[:, None], page.said, alpha=self.classes).reshape(-1)
            odds.add_(self._lines.index_select(0, said).view(n, size, self.heads))
        level = page.scaled @ self._person
        if page.offer is not None:
            level = level.add_(self._offers.index_select(0, classes + self.classes * page.offer[:, 0]))
        odds.add_(level[:, None])
        if page.ad is not None:
            odds.addcmul_(page.ad[:, :, None], self._ads.index_select(0, classes)[:, None])
        return odds
