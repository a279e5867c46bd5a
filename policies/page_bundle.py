"""A bundle for whole pages: what an exported page strategy decides, and what it has read of each shopper.

A bundle is a directory::

    actor.onnx           scores every part of a page from its context; see `hawker.policies.page_draw`
    reader.onnx          makes the context of a page from a shopper's features and memory
    memory.onnx          reads an answered page into the memory
    items.safetensors    the items' vectors
    lines.safetensors    what the logits of lines need beside a page's own, where the actor chooses copy
    bank/                the copy bank, where copy comes from one; see `hawker.policies.page_copy`
    writer/              who writes lines while a page waits, where asked for; see `hawker.policies.page_live`
    reasons.safetensors  what pages are explained with; see `hawker.policies.page_reasons`
    golden.safetensors   contexts and shoppers' lives, and torch's answers to them, repeated at every load
    manifest.json        schemas, shapes, lines of copy, rules, versions, what the strategy was trained on, SHA-256s
    checksums.json       SHA-256 of all of them, the manifest too

A memory is an array of fixed width that the server keeps for each shopper, zeros for a new one; nothing here keeps any.
The graphs compute in double precision and round memories and contexts to single, so that what one machine has read and
decided can be computed again on another, and for a page alone as in a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from safetensors.numpy import load_file

from hawker.policies.bundle import (
    GOLDEN,
    GOLDEN_TOLERANCE,
    GRAPH,
    ITEMS,
    MANIFEST,
    MAX_ENTRIES,
    Bundle,
    of_this_version,
    open_graph,
    require_format,
)
from hawker.policies.page_copy import PageCopy
from hawker.policies.page_draw import LineTable, PageScores, Picks, draw, log_probs, log_softmax, propensities
from hawker.policies.page_reasons import PageReasons
from hawker.shop.artefacts import CHECKSUMS, find_directory, read_json, sha256, verify_directory
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.features import FeatureSchema
from hawker.shop.search import Search

FORMAT = 2
"""Version of the bundle's form; that of slates is `hawker.policies.bundle.FORMAT`."""

FORMAT_WITH_BANK = 3
"""That of one whose lines come from a copy bank: what does not know banks must not show pages without lines."""

READER, MEMORY, LINES = "reader.onnx", "memory.onnx", "lines.safetensors"
REASONS = "reasons.safetensors"
GRAPHS = (GRAPH, READER, MEMORY)

ROW_ENTRIES = 128
"""About how many numbers a graph computes with for each candidate of a page, or for each slot."""

Array = npt.NDArray[Any]
Singles = npt.NDArray[np.float32]


@dataclass(frozen=True)
class AnsweredPages:
    """One page of each of B shoppers and what came of it.

    Attributes:
        features: The shoppers' features at that page, as ``PageBundle.shop`` encodes them, shape (B, d).
        gap: Days since the page before, 0 at the first, shape (B,).
        number: Number of the page within its visit, from 0, shape (B,).
        slate: Catalog indices, shape (B, K); ``EMPTY`` where a slot is.
        clicked: 1 where the item was clicked, shape (B, K).
        converted: 1 where the click led to a purchase, shape (B, K).
        revenue: Currency earned, shape (B, K).
        ad: The slot whose item was an ad, shape (B,); ``EMPTY`` where the page had none.
        offer: Discount tier, shape (B,); 0 is none.
        lines: The line shown with each item, shape (B, K), as a number in the bank; ``EMPTY`` is none.
        affinity: The shopper's recorded affinity with each item, shape (B, K); 0 where the shop records none.
    """

    features: Array
    gap: Array
    number: Array
    slate: Array
    clicked: Array
    converted: Array
    revenue: Array
    ad: Array
    offer: Array
    lines: Array
    affinity: Array

    def map(self, function: Callable[[Array], Array]) -> AnsweredPages:
        """Apply a function to every array."""
        return AnsweredPages(*(function(getattr(self, field.name)) for field in fields(self)))


class PageBundle:
    """An exported page strategy, ready to read and to decide.

    Attributes:
        shop: Makes contexts of requests, in which nothing is told of what a shopper did before.
        builder: What the contexts are like that the strategy decides on: ``read`` makes them of those.
        size: Slots of a page, K.
        width: Entries of a memory, H.
        lines: Texts of the lines of copy, by number: the log's, then those of the copy bank.
        copy: The copy bank that lines come from; None where the actor chooses them, or nobody does.
        ad_gap: Pages in a row of which at most one has an ad, counted over a shopper's visits; 1 is no limit.
        ad_load: Largest share of a shopper's pages up to and including the present one that have an ad.
        longest_gap: Days beyond which a gap counts as this many.
        reasons: Explain pages; None in a bundle of an earlier version.
        manifest: The manifest as it was read.
        digest: SHA-256 of the bundle's list of checksums: its name in logs and in shoppers' states.
        path: Its directory.
    """

    def __init__(
        self,
        shop: ContextBuilder,
        sessions: dict[str, onnxruntime.InferenceSession],
        table: LineTable | None,
        manifest: dict[str, Any],
        digest: str,
        reasons: PageReasons | None,
        copy: PageCopy | None,
        path: Path,
    ) -> None:
        """Args: the shop's builder, the graphs by file name, what lines need, the rest."""
        self.shop, self.manifest, self.digest, self.path = shop, manifest, digest, path
        self.builder = ContextBuilder(FeatureSchema.from_dict(manifest["context"], MANIFEST), shop.catalog)
        self.size, self.width, self.lines = manifest["page"]["size"], manifest["width"], tuple(manifest["lines"])
        self.ad_gap, self.ad_load = manifest["rules"]["ad_gap"], manifest["rules"]["ad_load"]
        self.longest_gap = manifest["longest_gap"]
        self.reasons, self.copy, self._sessions, self._table = reasons, copy, sessions, table

    @classmethod
    def load(cls, path: Path) -> PageBundle:
        """Read a bundle, verifying its checksums, its version and its golden examples.

        Raises:
            InputError: Not a bundle, a file that is missing or was changed, a bundle of another version, or an
                onnxruntime that computes something else than torch did.
        """
        path = verify_directory(path, "bundle")
        listed = read_json(path / CHECKSUMS)["files"]
        with of_this_version(path):
            bundle = cls.open(path, sha256(path / CHECKSUMS))
            for name, entry in bundle.manifest["files"].items():
                if listed.get(name) != entry["sha256"]:
                    raise InputError("not the file of the manifest", where=path / name, remedy="export the bundle anew")
            bundle._repeat(load_file(path / GOLDEN), path / GOLDEN)
        return bundle

    @classmethod
    def open(cls, path: Path, digest: str = "") -> PageBundle:
        """Read a bundle without its checksums and golden examples: one that is still being written."""
        manifest = read_json(path / MANIFEST)
        require_format(manifest, FORMAT_WITH_BANK if "bank" in manifest else FORMAT, path / MANIFEST)
        vectors = load_file(path / ITEMS)["vectors"]
        shop = ContextBuilder.from_dict(manifest["builder"], vectors, path / MANIFEST)
        shop = replace(shop, search=Search.load(path))
        graphs = manifest["graphs"]
        sessions = {name: open_graph(path / name, graphs[name]["inputs"] | graphs[name]["outputs"]) for name in GRAPHS}
        table = None
        if manifest["page"]["copy"]:
            stored = load_file(path / LINES)
            table = LineTable(stored["keys"], stored["bias"], stored.get("by_tier"))
        reasons = None
        if (path / REASONS).exists():
            reasons = PageReasons(load_file(path / REASONS), shop.catalog, table)
        copy = None
        if "bank" in manifest:
            copy = PageCopy.load(path, manifest["bank"], shop.catalog, manifest["lines"])
        return cls(shop, sessions, table, manifest, digest, reasons, copy, path)

    @cached_property
    def number_of(self) -> dict[str, int]:
        """The number of each line."""
        return {text: i for i, text in enumerate(self.lines)}

    def start(self, n: int) -> Singles:
        """Return the memories of n new shoppers, shape (n, H)."""
        return np.zeros((n, self.width), np.float32)

    def read(self, context: Context[Array], memory: Singles, gap: Array, number: Array) -> Context[Array]:
        """Return contexts for the strategy: what the shop knows, and what the memory makes of each shopper.

        Args:
            context: From ``shop``, B pages.
            memory: What was carried to them, shape (B, H); zeros of a new shopper.
            gap: Days since the page before, 0 for new shoppers, shape (B,).
            number: Number of the page within its visit, from 0, shape (B,).

        Raises:
            InputError: A feature, a memory or a time is not finite.
        """
        feed: dict[str, Array] = {
            "features": context.shopper.astype(np.float32),
            "memory": memory.astype(np.float32),
            "gap": np.clip(gap, 0.0, self.longest_gap).astype(np.float32),
            "number": np.asarray(number, np.float32),
            "candidates": context.candidates.astype(np.int64),
        }
        read = self._run(READER, feed, context.candidates.shape[1])
        affinity = read["affinity"] if self.shop.search is None else read["affinity"] + context.affinity
        return Context(read["shopper"], context.candidates, context.mask, affinity)

    def observe(self, memory: Singles, pages: AnsweredPages) -> Singles:
        """Return memories (B, H) after a page of each shopper, from those before it (B, H); new arrays.

        Raises:
            InputError: A feature, a memory or a number is not finite.
        """
        feed = {field.name: np.asarray(getattr(pages, field.name)) for field in fields(pages)}
        whole = ("slate", "ad", "offer", "lines")
        feed = {name: array.astype(np.int64 if name in whole else np.float32) for name, array in feed.items()}
        feed["gap"] = np.clip(feed["gap"], 0.0, np.float32(self.longest_gap))
        found: Singles = self._run(MEMORY, feed | {"memory": memory.astype(np.float32)}, self.size)["after"]
        return found

    def scores(self, context: Context[Array], ad_mask: Array | None = None) -> PageScores:
        """Score all that pages may hold.

        Args:
            context: As ``builder`` describes them and ``read`` makes them, B pages.
            ad_mask: Narrows which candidates may be ads, shape (B, C).

        Raises:
            InputError: A feature or an affinity is not finite.
        """
        may = context.mask if ad_mask is None else context.mask & ad_mask
        feed: dict[str, Array] = {
            "shopper": context.shopper.astype(np.float32),
            "candidates": context.candidates.astype(np.int64),
            "may": may,
            "affinity": context.affinity.astype(np.float32),
        }
        found = self._run(GRAPH, feed, context.candidates.shape[1])
        log_prob = {name: log_softmax(found[name]) for name in ("ad", "slot", "offer") if name in found}
        rest = {name: found[name] for name in ("line_query", "line_effects") if name in found}
        return PageScores(context.mask, found["slate"], **log_prob, **rest, lines=self._table)

    def decide(
        self,
        context: Context[Array],
        generator: np.random.Generator | None,
        ad_mask: Array | None = None,
        audience: Array | None = None,
    ) -> Decision[Array]:
        """Decide a batch of pages.

        Args:
            context: From ``read``, B pages.
            generator: Draws the pages; None takes the likeliest value of each part in turn, the ad first.
            ad_mask: Narrows which candidates may be ads, shape (B, C).
            audience: Number of each shopper's audience, shape (B,); needed where lines come from a copy bank.

        Returns:
            Whole pages, with log-probabilities (float64) and propensities under the stochastic strategy. A page that
            takes the likeliest values shows them with certainty: don't log these as its propensities.

        Raises:
            InputError: A feature or an affinity is not finite, or audiences are missing.
        """
        if self.copy is not None and audience is None:
            expected = "the number of each shopper's audience: the lines come from a copy bank"
            raise InputError("no audiences", where="page bundle", expected=expected)
        scores = self.scores(context, ad_mask)
        picks = draw(scores, self.size, generator)
        parts = log_probs(scores, picks)
        slate = np.where(picks.slate == EMPTY, EMPTY, np.take_along_axis(context.candidates, picks.slate.clip(0), 1))
        lines, steps = picks.lines, propensities(scores, picks)
        if self.copy is not None and audience is not None:
            said = self.copy.choose(slate, audience, picks.offer, generator)
            lines, parts = said.lines, parts | {"copy": said.log_prob.sum(1)}
        return Decision(slate, np.sum(list(parts.values()), 0), picks.slot, picks.offer, lines, parts, steps)

    def may_have_ad(self, pages: Array, ads: Array, since: Array) -> npt.NDArray[np.bool_]:
        """Return whose next page may have an ad by the rules of the training, (B,), from counts of pages seen (B,).

        Args:
            pages: Pages seen.
            ads: Those that had an ad.
            since: Pages since the last ad, 1 right after it; as many as you like where there was none.
        """
        # Some slack: rounding must not close what an exact share leaves open.
        found: npt.NDArray[np.bool_] = (ads + 1 <= self.ad_load * (pages + 1) + 1e-6) & (since >= self.ad_gap)
        return found

    def _run(self, graph: str, feed: dict[str, Array], choices: int) -> dict[str, Array]:
        """Run a graph in parts that fit the memory; ``choices`` items a page."""
        for name, array in feed.items():
            if array.dtype == np.float32 and not np.isfinite(array).all():
                raise InputError("not a finite number", where=f"context: {name}", expected="within float32")
        session, pages = self._sessions[graph], len(next(iter(feed.values())))
        names = [edge.name for edge in session.get_outputs()]
        step = max(1, MAX_ENTRIES // (choices * ROW_ENTRIES))
        parts = [
            session.run(names, {name: array[start : start + step] for name, array in feed.items()})
            for start in range(0, max(pages, 1), step)
        ]
        return {name: np.concatenate(columns) for name, columns in zip(names, zip(*parts, strict=True), strict=True)}

    def _repeat(self, golden: dict[str, Array], where: Path) -> None:
        """Answer the golden contexts anew, live the golden lives again, and compare."""
        context = Context(*(golden[f"context.{field.name}"] for field in fields(Context)))
        scores = self.scores(context)
        pages = AnsweredPages(*(golden[f"life.{field.name}"] for field in fields(AnsweredPages)))
        memory, candidates = self.start(pages.features.shape[1]), golden["life.candidates"]
        for page in range(len(pages.features)):
            memory = self.observe(memory, pages.map(itemgetter(page)))
        plain = Context(pages.features[-1], candidates, np.ones_like(candidates, bool), np.zeros_like(candidates))
        read = self.read(plain, memory, golden["life.next_gap"], golden["life.next_number"])
        picks = Picks._make(golden.get(f"page.{name}") for name in Picks._fields)
        answers = {
            **{name: getattr(scores, name) for name in ("slate", "ad", "slot", "offer")},
            **{f"log_prob.{part}": value for part, value in log_probs(scores, picks).items()},
            "memory": memory,
            "shopper": read.shopper,
            "affinity": read.affinity,
            **({} if self.copy is None else self.copy.repeat(golden)),
        }
        apart = max(_apart(golden[f"answer.{name}"], answer) for name, answer in answers.items() if answer is not None)
        if not apart <= GOLDEN_TOLERANCE:  # not "apart > ...": a NaN has to fail
            made_with = self.manifest["versions"]["onnxruntime"]
            raise InputError(
                "the golden examples come out otherwise here",
                where=where,
                got=float(f"{apart:.3g}"),
                expected=f"at most {GOLDEN_TOLERANCE:g} from them",
                remedy=f"install onnxruntime {made_with} (here: {onnxruntime.__version__}) or export the bundle anew",
            )


def load_bundle(path: Path) -> Bundle | PageBundle:
    """Read a bundle of slates or of whole pages; see their ``load``."""
    try:
        whole = read_json(find_directory(path) / MANIFEST)["format"] in (FORMAT, FORMAT_WITH_BANK)
    except (InputError, KeyError, TypeError):
        whole = False  # what is wrong is said below
    return PageBundle.load(path) if whole else Bundle.load(path)


def _apart(expected: Array, found: Array) -> float:
    """Return how far numbers are apart, at most, those above 1 as a share of themselves; NaN where one is none."""
    with np.errstate(invalid="ignore"):  # infinities that are the same
        distance = np.abs(found - expected) / (1.0 + np.abs(expected))
    return float(np.where(found == expected, 0.0, distance).max(initial=0.0))
