"""The copy bank of a page bundle: whose audience a shopper belongs to, and which line stands with each item.

The same lines with the same propensities as ``CopyBank`` has them, and the same labels as ``Audiences`` has them of a
log, looked up for whole batches: a line is its number in the bundle's list, an audience its number in
``Audiences.labels``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.policies.copy_bank import DECIMALS, CopyBank
from hawker.shop.audiences import Audiences, History
from hawker.shop.catalog import Catalog
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError

BANK = "bank"
"""The bank's directory in that of a bundle."""

NOBODY = -1
"""Visits before the present one of a shopper of whom no page was read yet."""

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Said(NamedTuple):
    """What is said on B pages.

    Attributes:
        lines: The line at each slot as its number in the bundle's list, shape (B, K); ``EMPTY`` in an empty slot.
        log_prob: Log-probability of each, shape (B, K); 0 of templates and in empty slots.
    """

    lines: Ints
    log_prob: Floats


class PageCopy:
    """A copy bank for whole pages of one shop.

    Attributes:
        bank: The lines.
        surface: Where on the page they stand.
        audiences: How shoppers are told apart.
        discounts: Share of the price that each tier of offer takes off, T of them.
        items: The catalog's item ids.
        liked: Number of each item's category in ``audiences.liked``, ``EMPTY`` of others, shape (n_items,).
        choices: Among how many lines each line of the bank's table is chosen, shape (n_lines,).
    """

    def __init__(
        self,
        bank: CopyBank,
        surface: str,
        audiences: Audiences,
        discounts: Sequence[float],
        catalog: Catalog,
        lines: Sequence[str],
    ) -> None:
        """Make the bank's lookup for the items of a ``catalog``; ``lines`` are the bundle's list.

        Raises:
            InputError: The bank says something that is not in the list.
        """
        self.bank, self.surface, self.audiences = bank, surface, audiences
        self.discounts, self.liked = tuple(discounts), audiences.liked_of(catalog)
        self._number, self.items = pd.Index(list(lines)), pd.Index(catalog.item_ids)
        self._labels = pd.Index([*audiences.labels, ""])
        off = np.round(np.asarray(self.discounts, np.float64), DECIMALS)
        self._offs = pd.Index(np.unique(off))
        self._off = self._offs.get_indexer(pd.Index(off)).astype(np.int64)
        table, templates = (part[part["surface"] == surface] for part in (bank.table, bank.templates))
        audience = self._labels.get_indexer(pd.Index(table["audience"]))
        key = self._keys(audience, *self._of_items(table))
        order = np.argsort(key, kind="stable")  # within a key as in the table, the highest bound first
        order = order[key[order] >= 0]
        self._row = table.index.to_numpy(np.int64)[order]
        self._line, propensity = self._numbers(table["line"].iloc[order]), bank.propensity[self._row]
        with np.errstate(divide="ignore"):
            self._log = np.log(propensity)
        self._key, self._start, size = np.unique(key[order], return_index=True, return_counts=True)
        self._end, group = self._start + size, np.repeat(np.arange(len(size)), size)
        # Cumulated over all lines, those of group g end at g + 1, so that one search serves every slot.
        within = propensity.cumsum()
        self._edge = within + (group + 1 - within[self._end - 1][group] if len(group) else 0.0)
        self._said = _Places(group * len(lines) + self._line)
        self.choices = np.zeros(len(bank.table), np.int64)
        self.choices[self._row] = size[group]
        key = self._keys(0, *self._of_items(templates))
        there = key >= 0
        self._templates = _Places(key[there])
        self._template = self._numbers([*templates["line"][there], bank.neutral[surface]])

    def _of_items(self, rows: pd.DataFrame) -> tuple[Ints, Ints]:
        """Return the numbers of rows' items and discounts, -1 of those that no page has."""
        parts = self.items.get_indexer(pd.Index(rows["item_id"])), self._offs.get_indexer(pd.Index(rows["discount"]))
        return parts[0].astype(np.int64), parts[1].astype(np.int64)

    def _keys(self, audience: Any, item: Ints, off: Ints) -> Ints:
        """Return one number for an audience, an item and a discount, -1 where one of them is none."""
        known = (np.asarray(audience) >= 0) & (item >= 0) & (off >= 0)
        number = (np.asarray(audience, np.int64) * len(self.items) + item) * len(self._offs) + off
        return np.where(known, number, -1)

    def _numbers(self, texts: Any) -> Ints:
        """Return the numbers of texts in the bundle's list."""
        texts = np.asarray(texts, dtype=object)
        found = self._number.get_indexer(pd.Index(texts)).astype(np.int64)
        if (found < 0).any():
            got = str(texts[int(np.argmax(found < 0))])[:80]
            raise InputError("the bank holds a line that the bundle does not list", where="copy bank", got=got)
        return found

    @classmethod
    def load(cls, directory: Path, values: Any, catalog: Catalog, lines: Sequence[str]) -> PageCopy:
        """Read the bank of a bundle.

        Args:
            directory: The bundle.
            values: What ``to_dict`` returned.
            catalog: The shop's items.
            lines: The bundle's list.

        Raises:
            InputError: The bank is missing, damaged, or has passed other guardrails than the manifest says.
        """
        bank = CopyBank.load(directory / BANK)
        said = values["guardrails"]
        if bank.guardrails != (said["digest"], said["version"]):
            raise InputError(
                "the lines have passed other guardrails than the manifest says",
                where=directory / BANK,
                got=f"version {bank.guardrails[1]}, {bank.guardrails[0][:12]}",
                expected=f"version {said['version']}, {said['digest'][:12]}",
                remedy="export the bundle anew",
            )
        audiences = Audiences(tuple(values["liked"]))
        return cls(bank, values["surface"], audiences, values["discounts"], catalog, lines)

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest says of the bank."""
        digest, version = self.bank.guardrails
        return {
            "surface": self.surface,
            "liked": list(self.audiences.liked),
            "discounts": list(self.discounts),
            "writer": self.bank.writer,
            "guardrails": {"digest": digest, "version": version},
        }

    def choose(self, items: Array, audience: Array, tier: Array | None, generator: np.random.Generator | None) -> Said:
        """Draw a line for every item of B pages.

        Args:
            items: Catalog indices, shape (B, K); ``EMPTY`` in an empty slot.
            audience: Number of each shopper's audience, shape (B,).
            tier: Of each page's offer, shape (B,); None is no offer anywhere.
            generator: Draws one number a slot; None takes the line of the highest propensity.
        """
        group, template = self._find(items, audience, tier)
        known = group >= 0
        found = group[known]
        place = self._start[found]
        if generator is not None:
            drawn = generator.random(items.shape)[known]
            place = np.searchsorted(self._edge, found + drawn, side="right").clip(place, self._end[found] - 1)
        lines, log_prob = template.copy(), np.zeros(items.shape)
        lines[known], log_prob[known] = self._line[place], self._log[place]
        return Said(lines, log_prob)

    def log_prob(self, items: Array, audience: Array, tier: Array | None, lines: Array) -> Floats:
        """Return the log-probability that ``choose`` draws given lines, shape (B, K); minus infinity where never.

        Args:
            items: As for ``choose``.
            audience: As for ``choose``.
            tier: As for ``choose``.
            lines: Numbers in the bundle's list, shape (B, K); ``EMPTY`` is none, which only empty slots have.
        """
        group, template = self._find(items, audience, tier)
        drawn = np.append(self._log, -np.inf)[self._places(group, lines)]
        found: Floats = np.where(group >= 0, drawn, np.where(lines == template, 0.0, -np.inf))
        return found

    def rows(self, items: Array, audience: Array, tier: Array | None, lines: Array) -> Ints:
        """Return where in the bank's table lines stand that ``choose`` has drawn, shape (B, K); ``EMPTY`` of the rest.

        Arguments are those of ``log_prob``; the rest are templates and empty slots.
        """
        return np.append(self._row, EMPTY)[self._places(self._find(items, audience, tier)[0], lines)]

    def _places(self, group: Ints, lines: Array) -> Ints:
        """Return the place of each line among those of its group, all groups in a row, -1 where it is not one."""
        return self._said.find(np.where((group >= 0) & (lines != EMPTY), group * len(self._number) + lines, -1))

    def _find(self, items: Array, audience: Array, tier: Array | None) -> tuple[Ints, Ints]:
        """Return each slot's group of lines, -1 without any, and its template; both (B, K)."""
        off = self._off[np.zeros(len(items), np.int64) if tier is None else tier][:, None]
        group = np.full(items.shape, -1)
        if len(self._key):
            for whose in (np.full(len(items), len(self._labels) - 1), audience):  # one's own count over anybody's
                key = self._keys(whose[:, None], items, off)
                place = np.searchsorted(self._key, key).clip(max=len(self._key) - 1)
                group = np.where(self._key[place] == key, place, group)
        template = self._template[self._templates.find(self._keys(0, items, off))]
        return group, np.where(items == EMPTY, EMPTY, template)

    def start(self, n: int) -> History:
        """Return what is known of n shoppers of whom no page was read yet."""
        zero, wide = np.zeros(n, np.int64), (n, len(self.audiences.liked))
        return History(zero + NOBODY, np.zeros(n), zero, np.zeros(wide, np.int64), np.full(wide, -1))

    def arrived(self, history: History, gap: Array, number: Array) -> History:
        """Return what is known of n shoppers at a page, from what was known after the page before.

        Args:
            history: After the page before.
            gap: Days since then, shape (n,).
            number: Number of the page within its visit, shape (n,); 0 begins one.
        """
        new = history.visits == NOBODY
        begins = (number == 0) & ~new
        return history._replace(
            visits=history.visits + (new | begins), away=np.where(begins, gap, history.away).astype(np.float64)
        )

    def answered(self, history: History, slate: Array, clicked: Array, converted: Array) -> History:
        """Return what is known of n shoppers after a page that was answered.

        Args:
            history: At the page, as ``arrived`` returns it.
            slate: Catalog indices, shape (n, K); ``EMPTY`` in an empty slot.
            clicked: 1 where the item was clicked, shape (n, K).
            converted: 1 where the click led to a purchase, shape (n, K).
        """
        kind = np.where((slate != EMPTY) & (clicked > 0), self.liked[slate], EMPTY)
        counts = (kind[:, :, None] == np.arange(len(self.audiences.liked))).sum(1)
        now = history.latest.max(1, keepdims=True, initial=-1) + 1
        return history._replace(
            purchases=history.purchases + (converted > 0).sum(1),
            clicks=history.clicks + counts,
            latest=np.where(counts > 0, now, history.latest),
        )

    def repeat(self, golden: Mapping[str, Array]) -> dict[str, Array]:
        """Answer golden examples anew.

        Returns:
            ``bank``: log-probabilities of given lines, shape (G, K); ``audience``: the audience of each shopper at each
            page of their lives and at the next one, shape (P + 1, G).
        """
        given = (golden[f"bank.{name}"] for name in ("items", "audience", "tier", "lines"))
        found, history = [], self.start(golden["life.slate"].shape[1])
        times = [
            np.concatenate([golden[f"life.{name}"], golden[f"life.next_{name}"][None]]) for name in ("gap", "number")
        ]
        for page, (gap, number) in enumerate(zip(*times, strict=True)):
            history = self.arrived(history, gap, number)
            found.append(self.audiences.number(history))
            if page < len(golden["life.slate"]):
                answers = (golden[f"life.{name}"][page] for name in ("slate", "clicked", "converted"))
                history = self.answered(history, *answers)
        return {"bank": self.log_prob(*given), "audience": np.stack(found)}


class _Places:
    """Where each of some numbers stands in an array that holds every number once."""

    def __init__(self, numbers: Ints) -> None:
        self._order = np.argsort(numbers, kind="stable")
        self._sorted = numbers[self._order]

    def find(self, wanted: Ints) -> Ints:
        """Return the place of each wanted number, -1 where it does not stand there; shape as wanted."""
        if not len(self._sorted):
            return np.full(wanted.shape, -1)
        at = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], -1)
