"""``hawker export``: a trained strategy as a bundle that decides without torch."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnxscript import opset20
from safetensors.numpy import save
from scipy.stats import binomtest
from torch import Tensor, nn

from hawker.policies.bundle import FORMAT, GOLDEN, GRAPH, ITEMS, MANIFEST, Bundle, log_prob
from hawker.policies.slate import PlackettLuce, SlateActor
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import CHECKSUMS, sha256, write_directory, write_json
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure

OPSET = 20
GOLDEN_PAGES = 32
CHECKED_PAGES = 1000
MAX_DELTA = 1e-5
"""A slate's log-probability may differ from torch's by this much, in nats; else nothing is exported."""

TIE = 1e-4
"""Logits closer than this are a tie: which of the two stands first is left to rounding."""

Array = npt.NDArray[Any]
Edges = dict[str, dict[str, Any]]
"""Inputs or outputs of a graph: name to type and shape, where a word is any length."""


def export_bundle(strategy: TrainedStrategy, out: Path) -> dict[str, Any]:
    """Write a strategy as a bundle and compare the two on random pages.

    The same strategy gives the same bytes with the same libraries.

    Args:
        strategy: What to export.
        out: Directory to write; a previous bundle there is replaced once the new one has passed.

    Returns:
        The report: ``figures`` of ``compare`` and ``bytes``; ``digest`` of the bundle; ``seed``; ``seconds``.

    Raises:
        InputError: The weights are not finite, ``out`` cannot be written, or onnxruntime does not compute what torch
            does; nothing is written then.
    """
    started = time.perf_counter()
    seed = 0
    for name, weights in strategy.actor.state_dict().items():
        if not bool(weights.isfinite().all()):
            raise InputError("the strategy has weights that are not finite", where=name, remedy="train it anew")
    with write_directory(out, "bundle") as scratch:
        (scratch / GRAPH).write_bytes(trace(strategy.actor))
        (scratch / ITEMS).write_bytes(save({"table": strategy.actor.item_table()}))
        (scratch / GOLDEN).write_bytes(save(golden_examples(strategy, np.random.default_rng(seed))))
        write_json(scratch / MANIFEST, _manifest(strategy, scratch))
        figures = compare(Bundle.read(scratch), strategy, CHECKED_PAGES, seed + 1)
        delta = figures["max_delta_log_prob"]["value"]
        if delta is None or delta > MAX_DELTA:
            raise InputError(
                "the exported actor does not compute what torch does",
                where=out,
                got=delta,
                expected=f"log-probabilities at most {MAX_DELTA:g} apart",
                remedy="install the versions of constraints.txt",
            )
    size = sum(path.stat().st_size for path in out.iterdir())
    figures["bytes"] = figure(size, None, None, 1, "bytes")
    seconds = round(time.perf_counter() - started, 2)
    return {"figures": figures, "digest": sha256(out / CHECKSUMS), "seed": seed, "seconds": seconds}


def compare(bundle: Bundle, strategy: TrainedStrategy, n: int, seed: int) -> dict[str, Figure]:
    """Compare a bundle with the strategy it came from on random pages and slates drawn by the strategy.

    Returns:
        ``max_delta_log_prob``: largest difference of a slate's log-probability from the actor's in torch, both in
        double precision. ``max_delta_log_prob_float32``: the same from the actor as it was trained; the rounding of
        float32 is in it. ``argmax_agreement``: share of pages with the same likeliest item as the actor as it was
        trained, ties left out, with its exact (Clopper-Pearson) interval.
    """
    context = random_pages(strategy.builder, n, np.random.default_rng(seed))
    mask = torch.from_numpy(context.mask)
    exact, trained = (
        PlackettLuce(_logits(actor, context), mask, strategy.size)
        for actor in (_double(strategy.actor), strategy.actor)
    )
    picks = exact.sample(torch.Generator().manual_seed(seed))
    served = bundle.logits(context)
    log_p = log_prob(served, context.mask, picks.numpy())
    figures = {
        name: figure(float(np.abs(log_p - slates.log_prob(picks).numpy()).max()), None, None, n, "nats")
        for name, slates in (("max_delta_log_prob", exact), ("max_delta_log_prob_float32", trained))
    }
    figures["argmax_agreement"] = _agreement(served, trained.logits.numpy())
    return figures


def _agreement(served: Array, trained: Array) -> Figure:
    """Compare where two sets of logits (B, C) have their maximum."""
    best = served.argmax(1)
    others = served.copy()
    np.put_along_axis(others, best[:, None], -np.inf, 1)
    clear = served.max(1) - others.max(1) > TIE
    n, same = int(clear.sum()), int((best == trained.argmax(1))[clear].sum())
    if n == 0:
        return figure(None, None, None, 0, "share of pages")
    interval = binomtest(same, n).proportion_ci(method="exact")
    return figure(same / n, interval.low, interval.high, n, "share of pages")


def random_pages(builder: ContextBuilder, n: int, generator: np.random.Generator) -> Context[Array]:
    """Draw pages that the shop could see, not only likely ones.

    Numbers are normal with the mean and deviation of the logs, categories are uniform with "unknown" among them, half
    of the affinities are zero. Candidates are a random selection in random order, of which any share is eligible, down
    to a single one on the first page.
    """
    schema, n_items = builder.shopper, len(builder.catalog)
    shopper = schema.centre + schema.spread * generator.standard_normal((n, schema.width), np.float32)
    start = len(schema.numeric)
    for known in schema.categories.values():
        code = generator.integers(len(known) + 1, size=n)  # the last one is "unknown": all zeros
        shopper[:, start : start + len(known)] = np.eye(len(known) + 1, len(known), dtype=np.float32)[code]
        start += len(known)
    n_candidates = min(n_items, 100)
    candidates = np.stack([generator.choice(n_items, n_candidates, replace=False) for _ in range(n)])
    mask = generator.random((n, n_candidates)) < generator.random((n, 1))
    mask[:, 0] = True
    mask[0, 1:] = False
    affinity = generator.exponential(size=mask.shape) * generator.integers(2, size=mask.shape)
    return Context(shopper, candidates, mask, affinity.astype(np.float32))


def golden_examples(strategy: TrainedStrategy, generator: np.random.Generator) -> dict[str, Array]:
    """Draw pages and answer them in torch: logits (n, C) and the log-probability (n,) of the likeliest slate."""
    context = random_pages(strategy.builder, GOLDEN_PAGES, generator)
    slates = PlackettLuce(_logits(_double(strategy.actor), context), torch.from_numpy(context.mask), strategy.size)
    return {
        "shopper": context.shopper,
        "candidates": context.candidates,
        "mask": context.mask,
        "affinity": context.affinity,
        "logits": slates.logits.numpy(),
        "log_prob": slates.log_prob(slates.mode()).numpy(),
    }


def _double(actor: SlateActor) -> SlateActor:
    """Return a copy of the actor on the CPU in double precision."""
    exact = copy.deepcopy(actor).cpu().double()
    exact.scale_items()  # in double precision, too
    return exact


def _logits(actor: SlateActor, context: Context[Array]) -> Tensor:
    """Return an actor's logits in its own precision, shape (B, C), on the CPU."""
    vectors = actor.item_vectors
    step = max(1, 2**22 // len(vectors))  # the actor scores the whole catalog for every page
    tensors = context.map(lambda array: torch.from_numpy(array).to(vectors.device))
    shopper, affinity = tensors.shopper.to(vectors.dtype), tensors.affinity.to(vectors.dtype)
    pages = Context(shopper, tensors.candidates, tensors.mask, affinity)
    with torch.no_grad():
        parts = [actor(pages.map(itemgetter(slice(i, i + step)))).cpu() for i in range(0, len(shopper), step)]
    return torch.cat(parts)


class _Graph(nn.Module):
    """The exported form of an actor: float32 in, double precision inside and out."""

    def __init__(self, actor: SlateActor) -> None:
        super().__init__()
        self.actor = _double(actor)

    def forward(self, shopper: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        return self.actor.score_candidates(shopper.double(), candidates.double(), mask)


def trace(actor: SlateActor) -> bytes:
    """Return ``score_candidates`` as an ONNX model for any number of pages B and candidates C."""
    return trace_graph(_Graph(actor).eval(), *_edges(actor))


def trace_graph(module: nn.Module, inputs: Edges, outputs: Edges, strict: bool = False) -> bytes:
    """Return a module as an ONNX model.

    Args:
        module: Takes the inputs in their order and returns the outputs in theirs.
        inputs: What it takes: name to type and shape, where "B" is any number of pages and "C" any of candidates.
        outputs: What it returns.
        strict: Whether its Python is read rather than run, so that ``len`` of a batch is no constant.
    """
    lengths = {"B": torch.export.Dim("pages"), "C": torch.export.Dim("places")}
    dynamic = tuple(
        {axis: lengths[length] for axis, length in enumerate(edge["shape"]) if length in lengths}
        for edge in inputs.values()
    )
    dtypes = {"float32": torch.float32, "bool": torch.bool, "int64": torch.int64}
    shapes = {"B": 2, "C": 3}  # examples; 0 and 1 would be taken for constants
    example = tuple(
        torch.zeros([shapes.get(length, length) for length in edge["shape"]], dtype=dtypes[edge["type"]])
        for edge in inputs.values()
    )
    with _quiet():
        exported = torch.export.export(module, example, dynamic_shapes=dynamic, strict=strict)
        program = torch.onnx.export(
            exported,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            custom_translation_table={torch.ops.aten.elu.default: _elu},
        )
    assert program is not None
    model = program.model_proto
    # The exporter notes stack traces: this machine's paths, and nothing that serving needs.
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output):
        shape = (inputs | outputs)[value.name]["shape"]
        for axis, length in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            if isinstance(length, str):
                axis.dim_param = length
    return bytes(model.SerializeToString(deterministic=True))


def _elu(x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """Return ELU in ONNX; onnxruntime's own is in single precision alone."""
    op: Any = opset20  # its types say less than it takes
    zero, one = (op.CastLike(op.Constant(value_float=value), x) for value in (0.0, 1.0))
    return op.Add(op.Max(x, zero), op.Sub(op.Exp(op.Min(x, zero)), one))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the exporter says about its own insides."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")  # "torchvision is not installed"
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            # The largest number of float64, in float32.
            warnings.filterwarnings("ignore", "overflow encountered in cast", RuntimeWarning)
            yield
    finally:
        log.setLevel(level)


def _edges(actor: SlateActor) -> tuple[Edges, Edges]:
    """Return the graph's inputs and outputs."""
    row = actor.item_table().shape[1] + 1
    inputs = {
        "shopper": {"type": "float32", "shape": ["B", len(actor.shopper_centre)]},
        "candidates": {"type": "float32", "shape": ["B", "C", row]},
        "mask": {"type": "bool", "shape": ["B", "C"]},
    }
    return inputs, {"logits": {"type": "float64", "shape": ["B", "C"]}}


def _manifest(strategy: TrainedStrategy, directory: Path) -> dict[str, Any]:
    inputs, outputs = _edges(strategy.actor)
    libraries = ("numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "torch")
    return {
        "format": FORMAT,
        "hawker": version("hawker"),
        "size": strategy.size,
        "hidden": strategy.actor.hidden,
        "trained_on": strategy.trained_on,
        "graph": {"opset": OPSET, "inputs": inputs, "outputs": outputs},
        "files": {
            name: {"bytes": (directory / name).stat().st_size, "sha256": sha256(directory / name)}
            for name in (GRAPH, ITEMS, GOLDEN)
        },
        "versions": {name: version(name) for name in libraries},
        "builder": strategy.builder.to_dict(),
    }
