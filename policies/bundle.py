"""A bundle: an exported strategy that makes decisions without torch.

A bundle is a directory::

    actor.onnx           scores candidates; normalisation and masking are in the graph
    items.safetensors    what the graph wants to know of each item, one row an item
    golden.safetensors   pages and torch's answers to them, repeated at every load
    manifest.json        schemas, shapes, versions, what the strategy was trained on, SHA-256 of the files above
    checksums.json       SHA-256 of all of them, the manifest too

The graph computes in double precision, so that a propensity written down by one machine can be recomputed on another,
and for a page alone as in a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from safetensors.numpy import load_file

from hawker.shop.artefacts import CHECKSUMS, read_json, sha256, verify_directory
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError

FORMAT = 1
"""Version of the bundle's form; a bundle of another one is refused."""

GRAPH, ITEMS, GOLDEN, MANIFEST = "actor.onnx", "items.safetensors", "golden.safetensors", "manifest.json"

GOLDEN_TOLERANCE = 1e-4
"""How far a logit, or a slot's log-probability, may be from the golden one."""

MAX_ENTRIES = 2**23
"""Entries of the candidates' rows given to the graph at once; a larger batch of pages runs in parts."""

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


class Bundle:
    """An exported strategy, ready to decide.

    Attributes:
        builder: Makes contexts of requests; its catalog names the items.
        size: Slots of a slate, K.
        manifest: The manifest as it was read.
        digest: SHA-256 of the bundle's list of checksums: its name in logs.
    """

    def __init__(
        self,
        builder: ContextBuilder,
        items: npt.NDArray[np.float32],
        session: onnxruntime.InferenceSession,
        manifest: dict[str, Any],
        digest: str,
    ) -> None:
        """Args: ``items``, what the graph wants of each item but for the affinity, shape (n_items, w); the rest."""
        self.builder, self.manifest, self.digest = builder, manifest, digest
        self.size: int = manifest["size"]
        self._items, self._session = items, session

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Read a bundle, verifying its checksums, its version and its golden examples.

        Raises:
            InputError: Not a bundle, a file that is missing or was changed, a bundle of another version, or an
                onnxruntime that computes something else than torch did.
        """
        path = verify_directory(path, "bundle")
        listed = read_json(path / CHECKSUMS)["files"]
        with of_this_version(path):
            bundle = cls.read(path, sha256(path / CHECKSUMS))
            for name in (GRAPH, ITEMS, GOLDEN):
                if listed.get(name) != bundle.manifest["files"][name]["sha256"]:
                    raise InputError("not the file of the manifest", where=path / name, remedy="export the bundle anew")
            bundle._repeat(load_file(path / GOLDEN), path / GOLDEN)
        return bundle

    @classmethod
    def read(cls, path: Path, digest: str = "") -> Bundle:
        """Read a bundle without its checksums and golden examples: one that is still being written."""
        manifest = read_json(path / MANIFEST)
        require_format(manifest, FORMAT, path / MANIFEST)
        edges = manifest["graph"]["inputs"] | manifest["graph"]["outputs"]
        # An item's row in the graph: features (d), free key (h), free bias, affinity. The table has all but the last.
        width = edges["candidates"]["shape"][2] - 1
        shape = len(manifest["builder"]["catalog"]["item_ids"]), width
        items = load_file(path / ITEMS)["table"]
        if items.shape != shape or items.dtype != np.float32:
            raise InputError(
                "the item table does not fit the manifest",
                where=path / ITEMS,
                got=f"{items.dtype} {items.shape}",
                expected=f"float32 {shape}",
                remedy="export the bundle anew",
            )
        vectors = items[:, : width - 1 - manifest["hidden"]]
        builder = ContextBuilder.from_dict(manifest["builder"], vectors, path / MANIFEST)
        return cls(builder, items, open_graph(path / GRAPH, edges), manifest, digest)

    def _repeat(self, golden: dict[str, Array], where: Path) -> None:
        """Answer the golden pages anew and compare."""
        context = Context(*(golden[name] for name in ("shopper", "candidates", "mask", "affinity")))
        logits, picks = self._choose(context, None)
        distances = np.subtract(logits, golden["logits"], out=np.zeros_like(logits), where=context.mask)
        slots = (log_prob(logits, context.mask, picks) - golden["log_prob"]) / self.size
        apart = float(max(np.abs(distances).max(), np.abs(slots).max()))
        masked = bool((np.isneginf(logits) == ~context.mask).all())
        if not (masked and apart <= GOLDEN_TOLERANCE):  # not "apart > ...": a NaN has to fail
            made_with = self.manifest["versions"]["onnxruntime"]
            raise InputError(
                "the golden examples come out otherwise here",
                where=where,
                got=float(f"{apart:.3g}") if masked else "an ineligible candidate in play",
                expected=f"at most {GOLDEN_TOLERANCE:g} from them",
                remedy=f"install onnxruntime {made_with} (here: {onnxruntime.__version__}) or export the bundle anew",
            )

    def logits(self, context: Context[Array]) -> Floats:
        """Score the candidates of a batch of pages.

        Returns:
            Shape (B, C), within (-20, 20); minus infinity where a candidate is not eligible.

        Raises:
            InputError: A feature or an affinity is not finite.
        """
        for name, values in (("shopper", context.shopper), ("affinity", context.affinity)):
            if not np.isfinite(values).all():
                raise InputError("not a finite number", where=f"context: {name}", expected="within float32")
        pages, n_candidates = context.candidates.shape
        width = self._items.shape[1] + 1
        step = max(1, MAX_ENTRIES // (n_candidates * width))
        logits = np.empty((pages, n_candidates))
        for start in range(0, pages, step):
            part = context.map(itemgetter(slice(start, start + step)))
            rows = np.empty((*part.candidates.shape, width), np.float32)
            rows[..., :-1] = self._items[part.candidates]
            rows[..., -1] = part.affinity
            inputs = {"shopper": part.shopper, "candidates": rows, "mask": part.mask}
            logits[start : start + step] = self._session.run(["logits"], inputs)[0]
        return logits

    def decide(self, context: Context[Array], generator: np.random.Generator | None) -> Decision[Array]:
        """Decide a batch of pages.

        Args:
            context: From ``builder``.
            generator: Draws the slates by Gumbel top-k (arXiv 1903.06059); None takes the likeliest ones.

        Returns:
            Slates (B, K) and the log-probability of each under the stochastic strategy (B,), float64. A page that
            takes the likeliest slate shows it with certainty: don't log this as its propensity.
        """
        logits, picks = self._choose(context, generator)
        return Decision(_slate(context, picks), log_prob(logits, context.mask, picks))

    def _choose(self, context: Context[Array], generator: np.random.Generator | None) -> tuple[Floats, Array]:
        """Return logits (B, C) and picks (B, K), places in the candidate list."""
        logits = self.logits(context)
        scores = logits if generator is None else logits + generator.gumbel(size=logits.shape)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self.size]
        order = np.where(np.isneginf(np.take_along_axis(scores, order, 1)), EMPTY, order)
        return logits, np.pad(order, ((0, 0), (0, self.size - order.shape[1])), constant_values=EMPTY)


def _slate(context: Context[Array], picks: Array) -> Array:
    chosen = np.take_along_axis(context.candidates, np.maximum(picks, 0), 1)
    return np.where(picks == EMPTY, EMPTY, chosen)


def conditional_log_prob(logits: Floats, mask: npt.NDArray[np.bool_], picks: Array) -> Floats:
    """Return each pick's log-probability given those above it, shape (B, K): zero where a slot is empty.

    Args:
        logits: Shape (B, C), finite where eligible.
        mask: True where a candidate is eligible, shape (B, C).
        picks: Places in the candidate list, shape (B, K); ``EMPTY`` where a slot is empty.
    """
    filled = picks != EMPTY
    places = np.maximum(picks, 0)
    eligible = np.where(mask, logits, -np.inf).astype(np.float64)
    shifted = eligible - np.max(eligible, axis=1, keepdims=True, initial=-1e9)  # a page may have no candidate at all
    weight = np.exp(shifted)
    picked = _times_picked(mask.shape, picks) > 0
    rest = np.where(picked, 0.0, weight).sum(1, keepdims=True)
    chosen = np.where(filled, np.take_along_axis(weight, places, 1), 0.0)
    left = rest + np.cumsum(chosen[:, ::-1], axis=1)[:, ::-1]  # what this slot and those below may still show
    step = np.take_along_axis(shifted, places, 1) - np.log(np.where(left > 0, left, 1.0))
    return np.where(filled, step, 0.0)


def log_prob(logits: Floats, mask: npt.NDArray[np.bool_], picks: Array) -> Floats:
    """Return the log-probability of whole Plackett-Luce slates, shape (B,), as ``PlackettLuce.log_prob`` does.

    It is minus infinity for a slate that cannot be drawn: a candidate that is repeated or not eligible, or an empty
    slot while a candidate is left. Arguments as for ``conditional_log_prob``.
    """
    filled = picks != EMPTY
    eligible = np.take_along_axis(mask, np.maximum(picks, 0), 1) | ~filled
    once = _times_picked(mask.shape, picks).max(1) <= 1
    slots = np.minimum(mask.sum(1), picks.shape[1])
    in_order = filled == (np.arange(picks.shape[1]) < slots[:, None])
    possible = eligible.all(1) & once & in_order.all(1)
    return np.where(possible, conditional_log_prob(logits, mask, picks).sum(1), -np.inf)


def _times_picked(shape: tuple[int, ...], picks: Array) -> npt.NDArray[np.int64]:
    times = np.zeros(shape, np.int64)
    row, slot = np.nonzero(picks != EMPTY)
    np.add.at(times, (row, picks[row, slot]), 1)
    return times


def decide_request(bundle: Bundle, request: Any, where: object, seed: int | None) -> dict[str, Any]:
    """Answer one serving request; see ``ContextBuilder.from_request``.

    Args:
        bundle: Decides.
        request: The request as JSON values.
        where: The file it came from, for messages.
        seed: Decides the drawn slate; None takes the likeliest one.

    Returns:
        JSON values: ``slate`` item ids from the top, of filled slots only; ``log_prob`` of the whole slate under the
        stochastic strategy (nats); ``propensities`` of each of its items given those above; ``drawn`` "sampled" or
        "greedy" (a greedy page must not be logged with these propensities); ``seed``; ``candidates`` eligible;
        ``empty_slots``; ``bundle`` digest.

    Raises:
        InputError: The request is not one the builder knows, or the seed is negative.
    """
    if seed is not None and seed < 0:
        raise InputError("bad seed", where="seed", got=seed, expected="at least 0")
    context = bundle.builder.from_request(request, where)
    logits, picks = bundle._choose(context, None if seed is None else np.random.default_rng(seed))
    filled = picks[0] != EMPTY
    propensities = np.exp(conditional_log_prob(logits, context.mask, picks))[0, filled]
    ids = bundle.builder.catalog.item_ids
    return {
        "slate": [ids[item] for item in _slate(context, picks)[0, filled]],
        "log_prob": float(log_prob(logits, context.mask, picks)[0]),
        "propensities": propensities.tolist(),
        "drawn": "greedy" if seed is None else "sampled",
        "seed": seed,
        "candidates": int(context.mask.sum()),
        "empty_slots": int((~filled).sum()),
        "bundle": bundle.digest,
    }


def require_format(manifest: Any, known: int, where: Path) -> None:
    """Refuse a bundle whose manifest names another format than the one that is known."""
    if manifest.get("format") != known:
        raise InputError(
            "a bundle of another format",
            where=where,
            got=manifest.get("format"),
            expected=f"format {known}",
            remedy=f"read it with hawker {manifest.get('hawker', 'that made it')}, or export it anew with this one",
        )


@contextlib.contextmanager
def of_this_version(path: Path) -> Iterator[None]:
    """Say in one line that a manifest, an array or a graph has another form."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # onnxruntime's errors have no narrower parent
        got = repr(error).splitlines()[0]
        raise InputError("not a bundle of this version", where=path, got=got, remedy="export it anew") from None


def open_graph(path: Path, edges: dict[str, Any]) -> onnxruntime.InferenceSession:
    """Open an ONNX graph whose inputs and outputs have the shapes of ``edges``, by name, for one thread.

    Raises:
        InputError: It has others.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3  # errors only: what is wrong is said by an exception
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    shapes = {edge.name: edge.shape for edge in (*session.get_inputs(), *session.get_outputs())}
    if shapes != {name: edge["shape"] for name, edge in edges.items()}:
        raise InputError("the graph does not fit the manifest", where=path, got=shapes)
    return session
