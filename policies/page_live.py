"""Live copy for a bundle's pages: the writer that it holds, told of the items that are shown.

``hawker export --writer`` puts a directory into that of the bundle::

    config.json, *.safetensors, ...  the model and its tokenizer, none of which is code
    items.parquet                    what the writer is told of each item, in the catalog's order
    guardrails.yaml                  the rules that a line must keep

Torch and transformers are needed here and, in serving, nowhere else.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.live_copy import LiveCopy, LiveLine, Source, StandIn
from hawker.policies.page_bundle import PageBundle
from hawker.policies.page_copy import PageCopy
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError

WRITER = "writer"
"""The writer's directory in that of a bundle, and its key in the manifest."""

TOLD, RULES = "items.parquet", "guardrails.yaml"
COLUMNS = ["title", "description", "category", "price"]
"""What the writer is told of an item, as `hawker.policies.briefs.Brief` names it; the price is NaN where unknown."""


class LivePages:
    """Writes the lines of a bundle's pages while they wait, one page at a time.

    Use it as a context manager, or call ``copy.close()``: a writer that is late is waited for then.

    Attributes:
        copy: Asks the writer, and counts what came of it.
    """

    def __init__(
        self, copy: LiveCopy, page: PageCopy, lines: tuple[str, ...], told: pd.DataFrame, voice: tuple[str, ...]
    ) -> None:
        """Args: who asks the writer, the bundle's bank and lines, ``COLUMNS`` by catalog index, lines in the voice."""
        self.copy, self._page, self._lines, self._told, self._voice = copy, page, lines, told, voice

    @classmethod
    def load(cls, bundle: PageBundle, seconds: float, device: str = "auto") -> LivePages:
        """Read the writer of a bundle, and have it read a prompt, so that the first page is no slower than others.

        Args:
            bundle: The bundle.
            seconds: How long a page waits for all of its lines.
            device: Where the writer computes: "auto", "cpu" or "cuda".

        Raises:
            InputError: The bundle has no writer, files lie in its directory that the manifest does not know, its rules
                or prompts are not those of this Hawker, transformers cannot read it, or the deadline is a bad one.
        """
        path, files = bundle.path / WRITER, bundle.manifest["files"]
        if bundle.copy is None or WRITER not in bundle.manifest:
            remedy = "export it with --writer, from a run with a copy bank"
            raise InputError("the bundle has no writer", where=bundle.path, remedy=remedy)
        for file in sorted(path.rglob("*")):  # an adapter, say, that transformers would find
            if f"{WRITER}/{file.relative_to(path)}" not in files:
                raise InputError("a file that the manifest does not know", where=file, remedy="export the bundle anew")
        rules, (digest, version) = Guardrails.load(path / RULES), bundle.copy.bank.guardrails
        if rules.digest != digest:
            raise InputError(
                "the rules or the prompts are not those of the export",
                where=path / RULES,
                got=f"version {rules.version}, {rules.digest[:12]}",
                expected=f"version {version}, {digest[:12]}",
                remedy="export the bundle anew with this version of Hawker, from a bank built anew",
            )
        from hawker.policies.writer import Writer
        from hawker.shop.devices import resolve_device

        writer = Writer.load(str(path.resolve()), resolve_device(device))
        copy, told = LiveCopy(writer, rules, seconds), pd.read_parquet(path / TOLD)[COLUMNS]
        with contextlib.suppress(TimeoutError):
            writer.write([Brief(bundle.copy.surface)], until=0.0)
        return cls(copy, bundle.copy, bundle.lines, told, tuple(bundle.manifest[WRITER]["voice"]))

    def write(
        self, page: Decision[npt.NDArray[Any]], audience: npt.NDArray[Any], seed: int | None
    ) -> list[LiveLine | None]:
        """Return the line at each slot of one page, None in an empty one.

        Args:
            page: The page, as the bundle decides it; its lines stand in where the writer's do not come.
            audience: Number of the shopper's audience, shape (1,).
            seed: Decides what the writer says; None takes the likeliest words.
        """
        assert page.copy is not None
        rows = self._page.rows(page.slate, audience, page.offer, page.copy)[0].tolist()
        slots = [slot for slot, item in enumerate(page.slate[0].tolist()) if item != EMPTY]
        tier = 0 if page.offer is None else int(page.offer[0])
        who, off = self._page.audiences.labels[audience[0]], self._page.discounts[tier]
        briefs, stand_ins = [], []
        for slot in slots:
            briefs.append(self.brief(int(page.slate[0, slot]), who, off))
            source: Source = "fallback" if rows[slot] == EMPTY else "bank"
            stand_ins.append(StandIn(self._lines[page.copy[0, slot]], source))
        said = dict(zip(slots, self.copy.write(briefs, stand_ins, seed), strict=True))
        return [said.get(slot) for slot in range(page.slate.shape[1])]

    def brief(self, item: int, audience: str, discount: float) -> Brief:
        """Return what the writer is told of the item of a catalog index, for an audience and at a discount."""
        title, description, category, price = self._told.iloc[item]
        known = None if np.isnan(price) else float(price)
        return Brief(self._page.surface, title, description, category, known, discount, audience, self._voice)

    def __enter__(self) -> LivePages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.copy.close()
