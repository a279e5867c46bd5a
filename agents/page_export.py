"""``hawker export``: what a run has learned as a bundle that decides without torch."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from hawker.agents.bank_export import SURFACE, compare_copy, golden_copy, page_copy, read_bank, without_copy
from hawker.agents.page_graphs import ActorGraph, ObserveGraph, ReadGraph
from hawker.agents.page_reasons import compare_reasons, reason_arrays, usual_pages
from hawker.agents.page_world import read
from hawker.agents.writer_export import TakenWriter
from hawker.policies.bundle import GOLDEN, GRAPH, ITEMS, MANIFEST
from hawker.policies.copy_bank import CopyBank
from hawker.policies.export import MAX_DELTA, OPSET, Edges, export_bundle, random_pages, trace_graph
from hawker.policies.page import PageChoice, sum_of
from hawker.policies.page_actor import PageStrategy
from hawker.policies.page_bundle import (
    FORMAT,
    FORMAT_WITH_BANK,
    LINES,
    MEMORY,
    READER,
    REASONS,
    AnsweredPages,
    PageBundle,
)
from hawker.policies.page_copy import BANK, PageCopy
from hawker.policies.page_draw import Picks, log_probs, log_softmax
from hawker.policies.page_live import WRITER
from hawker.policies.page_reasons import Pages
from hawker.policies.trained import POLICY, TrainedStrategy
from hawker.shop.artefacts import CHECKSUMS, read_json, sha256, verify_directory, write_directory, write_json
from hawker.shop.config import from_dict
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.learned import NEVER
from hawker.simulators.reader import OWN, ReadWorld
from hawker.simulators.store import FittedShoppers, load_shoppers

LARGEST = {
    "max_delta_log_prob": MAX_DELTA,
    "max_delta_log_prob.copy": MAX_DELTA,
    "max_delta_log_prob_float32": 1e-3,
    "max_delta_log_prob_read": 1e-3,
    "max_delta_reasons": 1e-3,
}
"""What figures may be, in nats; else nothing is exported. Float32 rounds in all but the first: in torch, and in what is
told of shoppers."""

CHECKED_PAGES = 10_000
LIVES, LIVED_PAGES = 256, 8
"""Shoppers whose lives are read beside torch, and pages of each."""

GOLDEN_PAGES = 16
_CPU = torch.device("cpu")

Array = npt.NDArray[Any]


def export_run(
    run: Run, out: Path, rules: Path | None = None, writer: Path | None = None, voice: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Write what a run has learned, slates or whole pages, as a bundle; see ``export_bundle`` and ``export_pages``.

    Args:
        run: The run; the lines of whole pages come from its copy bank, where it has one.
        out: Directory to write.
        rules: The guardrails that the bank's lines must have passed; by default those that come with Hawker.
        writer: Directory of the writer that goes along, to write lines while pages wait; None takes none.
        voice: Lines in the shop's voice, which the writer is shown.

    Raises:
        InputError: The run has no policy, or one that was trained against other shoppers than it has; or its copy bank
            is damaged or has passed other guardrails; or there is no writer, or nothing that it could write for.
    """
    if voice and writer is None:
        raise InputError("nobody speaks in this voice", where="voice", got=voice[0], remedy="name a --writer")
    policy = verify_directory(run.policy, "policy")
    if "page" not in read_json(policy / POLICY):
        if writer is not None:
            raise InputError("slates have no lines to write", where=run.policy, remedy="leave out --writer")
        return export_bundle(TrainedStrategy.load(policy, _CPU), out)
    strategy, shoppers = PageStrategy.load(policy, _CPU), load_shoppers(run.shoppers, _CPU)
    if strategy.trained_on.get("shoppers") != shoppers.digest:
        remedy = f"train it anew with `hawker train {run.path}`"
        raise InputError("the policy was trained against other shoppers", where=run.policy, remedy=remedy)
    bank, taken = read_bank(run, rules), None
    if writer is not None:
        if bank is None:
            remedy = f"fill it with hawker writer bank {run.path}"
            raise InputError("no copy bank to stand in where the writer is late", where=run.bank, remedy=remedy)
        taken = TakenWriter.find(writer, shoppers, rules, voice)
    return export_pages(strategy, shoppers, out, bank, taken)


def export_pages(
    strategy: PageStrategy,
    shoppers: FittedShoppers,
    out: Path,
    bank: CopyBank | None = None,
    writer: TakenWriter | None = None,
) -> dict[str, Any]:
    """Write a page strategy, and the reader that its contexts come from, as a bundle; compare both with torch.

    Args:
        strategy: What to export.
        shoppers: Those it was trained against.
        out: Directory to write; a previous bundle there is replaced once the new one has passed.
        bank: Says the lines in the strategy's place; None lets the strategy choose them, if it does.
        writer: Goes along, beside a bank.

    Returns:
        The report: ``figures`` of ``compare`` and ``compare_lives``, with a bank of ``compare_copy``, and ``bytes``;
        ``digest``; ``seed``; ``seconds``.

    Raises:
        InputError: The weights are not finite, ``out`` cannot be written, the log that says who is which audience is
            not there, the writer cannot write, or onnxruntime does not compute what torch does; nothing is written
            then.
    """
    started, seed = time.perf_counter(), 0
    for name, weights in strategy.actor.state_dict().items():
        if weights.is_floating_point() and not bool((weights.isfinite() | name.endswith("shopper_spread")).all()):
            raise InputError("the strategy has weights that are not finite", where=name, remedy="train it anew")
    said = None
    if bank is not None:
        shoppers = shoppers.with_lines(bank.texts(SURFACE))
        assert shoppers.lines is not None
        said, strategy = page_copy(bank, shoppers), without_copy(strategy, shoppers.lines.texts)
    reward = from_dict(RewardSpec, strategy.trained_on["config"]["reward"], "policy: trained_on: reward")
    world = read(shoppers, shoppers.world("train"), reward)
    if world.builder.shopper.columns != strategy.builder.shopper.columns:
        raise InputError("the policy decides on other contexts", where="policy", remedy="train it anew")
    with write_directory(out, "bundle") as scratch:
        _write(strategy, shoppers, reward, scratch, world, seed, said, writer)
        bundle = PageBundle.open(scratch)
        figures = compare(bundle, strategy, CHECKED_PAGES, seed + 1)
        figures |= compare_lives(bundle, strategy, world, LIVES, LIVED_PAGES, seed + 2)
        if bundle.copy is not None:
            figures |= compare_copy(bundle.copy, bundle.lines, CHECKED_PAGES, bundle.size, seed + 3)
        for name, largest in LARGEST.items():
            delta = figures[name]["value"] if name in figures else 0.0  # not all pages say something
            if delta is None or delta > largest:
                raise InputError(
                    "the exported strategy does not compute what torch does",
                    where=out,
                    got=delta,
                    expected=f"log-probabilities at most {largest:g} apart",
                    remedy="install the versions of constraints.txt",
                )
    written = (path for path in out.rglob("*") if path.is_file())
    figures["bytes"] = figure(sum(path.stat().st_size for path in written), None, None, 1, "bytes")
    seconds = round(time.perf_counter() - started, 2)
    return {"figures": figures, "digest": sha256(out / CHECKSUMS), "seed": seed, "seconds": seconds}


def compare(bundle: PageBundle, strategy: PageStrategy, n: int, seed: int) -> dict[str, Figure]:
    """Compare a bundle with the strategy it came from on random contexts and pages drawn by the strategy.

    Returns:
        ``max_delta_log_prob``: largest difference of a page's log-probability from the actor's in torch, both in double
        precision, and for each part ``max_delta_log_prob.PART``; ``max_delta_log_prob_float32``: that of a page's from
        the actor as it was trained; the rounding of float32 is in it.
    """
    context = random_pages(strategy.builder, n, np.random.default_rng(seed))
    generator, exact = torch.Generator().manual_seed(seed), ActorGraph(strategy.actor)
    apart: dict[str, float] = {}
    step = max(1, 2**22 // len(strategy.builder.catalog))  # the actor may score the whole catalog for every page
    for start in range(0, n, step):
        part = context.map(itemgetter(slice(start, start + step)))
        tensors = part.map(torch.from_numpy)
        pages = exact.pages(tensors)
        page = pages.sample(generator)
        expected, trained = pages.log_probs(page), strategy.pages(tensors).log_prob(page)
        found = log_probs(bundle.scores(part), _picks(page))
        deltas = {f".{name}": found[name] - value.numpy() for name, value in expected.items()}
        whole = np.sum(list(found.values()), 0)
        deltas |= {"": whole - sum_of(expected).numpy(), "_float32": whole - trained.numpy()}
        for name, delta in deltas.items():
            apart[name] = max(apart.get(name, 0.0), _largest(delta))
    return {f"max_delta_log_prob{name}": figure(value, None, None, n, "nats") for name, value in sorted(apart.items())}


@torch.no_grad()
def compare_lives(
    bundle: PageBundle, strategy: PageStrategy, world: ReadWorld, n: int, pages: int, seed: int
) -> dict[str, Figure]:
    """Let n shoppers live through pages in the world that the strategy was trained in, and read along with a bundle.

    Returns:
        ``max_delta_context``: largest difference of a number of a context, of one above 1 as a share of it;
        ``max_delta_log_prob_read``: of the log-probability of a page that the strategy draws, each by its own reading;
        ``max_delta_reasons``: of a score that is explained from that of the bundle's logits.
    """
    assert bundle.reasons is not None
    generator, exact = torch.Generator().manual_seed(seed), ActorGraph(strategy.actor)
    here, memory = world.arrive(n, generator), bundle.start(n)
    gap, number = np.zeros(n), np.zeros(n)
    told, draws = None if bundle.copy is None else bundle.copy.start(n), np.random.default_rng(seed)
    contexts, chances, explained = 0.0, 0.0, 0.0
    for _ in range(pages):
        shopper, affinity = (here.state[OWN + name].numpy() for name in ("shopper", "affinity"))
        context, plain = here.context.map(lambda array: array.numpy()), here.context.map(lambda array: array.numpy())
        seen = bundle.read(replace(plain, shopper=shopper, affinity=affinity), memory, gap, number)
        for one, other in ((seen.shopper, context.shopper), (seen.affinity, context.affinity)):
            contexts = max(contexts, _largest((one - other) / (1.0 + np.abs(other))))
        distribution = exact.pages(here.context)
        page = distribution.sample(generator)
        expected = distribution.log_prob(page)
        scores, picks = bundle.scores(seen), _picks(page)
        found = np.sum(list(log_probs(scores, picks).values()), 0)
        chances = max(chances, _largest(found - expected.numpy()))
        met = Pages(replace(seen, affinity=affinity), picks, seen.mask)
        explained = max(explained, compare_reasons(bundle.reasons, scores, met))
        decision = page.decision(here.context, expected)
        if bundle.copy is not None and told is not None:
            told, offer = bundle.copy.arrived(told, gap, number), None if page.offer is None else page.offer.numpy()
            said = bundle.copy.choose(decision.slate.numpy(), bundle.copy.audiences.number(told), offer, draws)
            decision = replace(decision, copy=torch.from_numpy(said.lines))
        here, outcome = world.respond(here, decision, generator)
        answered = _answered(shopper, affinity, context.candidates, gap, number, decision, outcome)
        memory = bundle.observe(memory, answered)
        if bundle.copy is not None and told is not None:
            told = bundle.copy.answered(told, answered.slate, answered.clicked, answered.converted)
        left = np.zeros(n, bool) if outcome.leave is None else outcome.leave.numpy()
        gap = np.zeros(n) if outcome.days is None else outcome.days.numpy()
        number = np.where(left, 0.0, number + 1.0)
    return {
        "max_delta_context": figure(contexts, None, None, n * pages, "1 + size"),
        "max_delta_log_prob_read": figure(chances, None, None, n * pages, "nats"),
        "max_delta_reasons": figure(explained, None, None, n * pages, "log-odds"),
    }


def _answered(
    shopper: Array,
    affinity: Array,
    candidates: Array,
    gap: Array,
    number: Array,
    decision: Decision[Tensor],
    outcome: Outcome[Tensor],
) -> AnsweredPages:
    """Return pages that were decided and answered in a world as a bundle reads them."""
    slate, clicked = decision.slate.numpy(), outcome.clicked.numpy()
    nothing, none = np.zeros_like(clicked), np.full(len(slate), EMPTY)
    own = ((candidates[:, None, :] == slate[:, :, None]) * affinity[:, None, :]).sum(2)
    converted, revenue = (nothing if part is None else part.numpy() for part in (outcome.converted, outcome.revenue))
    return AnsweredPages(
        shopper,
        gap,
        number,
        slate,
        clicked,
        converted,
        revenue,
        none if decision.ad is None else decision.ad.numpy(),
        none * 0 if decision.offer is None else decision.offer.numpy(),
        np.full_like(slate, EMPTY) if decision.copy is None else decision.copy.numpy(),
        own,
    )


def _picks(page: PageChoice) -> Picks:
    return Picks._make(None if part is None else part.numpy() for part in page)


def _largest(delta: Array) -> float:
    """Return the largest size of a difference; NaN where one is none, so that it cannot pass."""
    return float(np.abs(delta).max(initial=0.0))


def golden_examples(
    strategy: PageStrategy,
    reading: ReadGraph,
    observing: ObserveGraph,
    shop: ContextBuilder,
    generator: np.random.Generator,
) -> dict[str, Array]:
    """Draw contexts, and lives of random pages and answers; have torch answer them in double precision."""
    context = random_pages(strategy.builder, GOLDEN_PAGES, generator)
    exact, tensors = ActorGraph(strategy.actor), context.map(torch.from_numpy)
    pages, given = exact.pages(tensors), (tensors.shopper, tensors.candidates, tensors.mask, tensors.affinity)
    page = pages.mode()
    golden = {f"context.{field.name}": getattr(context, field.name) for field in fields(Context)}
    golden |= {f"page.{name}": value for name, value in _picks(page)._asdict().items() if value is not None}
    golden |= {f"answer.log_prob.{part}": value.numpy() for part, value in pages.log_probs(page).items()}
    for name, value in zip(exact.names, exact(*given), strict=True):
        if name in ("slate", "ad", "slot", "offer"):
            found = value.numpy()
            golden[f"answer.{name}"] = found if name == "slate" else log_softmax(found)
    lives = [_random_answers(shop, strategy, generator) for _ in range(LIVED_PAGES)]
    memory = torch.zeros(GOLDEN_PAGES, observing.reader.width)
    for life in lives:
        told = {field.name: torch.from_numpy(getattr(life, field.name)) for field in fields(life)}
        memory = observing(**told, memory=memory)
    for field in fields(AnsweredPages):
        golden[f"life.{field.name}"] = np.stack([getattr(life, field.name) for life in lives])
    gap, number = generator.exponential(5.0, GOLDEN_PAGES).astype(np.float32), np.zeros(GOLDEN_PAGES, np.float32)
    last = (lives[-1].features, memory.numpy(), gap, number, context.candidates)
    shopper, affinity = reading(*map(torch.from_numpy, last))
    golden |= {"life.candidates": context.candidates, "life.next_gap": gap, "life.next_number": number}
    golden |= {"answer.memory": memory.numpy(), "answer.shopper": shopper.numpy(), "answer.affinity": affinity.numpy()}
    return {name: np.ascontiguousarray(array) for name, array in golden.items()}


def _random_answers(shop: ContextBuilder, strategy: PageStrategy, generator: np.random.Generator) -> AnsweredPages:
    """Draw a page for each of ``GOLDEN_PAGES`` shoppers, and answers of any kind that can be."""
    n, size, n_lines = GOLDEN_PAGES, strategy.size, len(strategy.lines)
    features = random_pages(shop, n, generator).shopper
    items = len(shop.catalog)
    slate = np.stack([generator.permutation(max(items, size))[:size] for _ in range(n)])
    slate = np.where((slate < items) & (generator.random(slate.shape) < 0.9), slate, EMPTY)
    shown = slate != EMPTY
    clicked = shown & (generator.random(slate.shape) < 0.3)
    converted = clicked & (generator.random(slate.shape) < 0.5)
    revenue = converted * generator.lognormal(2.0, 1.0, slate.shape)
    ad = generator.integers(EMPTY, size, n)
    lines = np.where(shown, generator.integers(EMPTY, max(n_lines, 1), slate.shape), EMPTY)
    lines = lines if n_lines else np.full_like(slate, EMPTY)
    affinity = shown * generator.integers(2, size=slate.shape)
    gap, number = generator.exponential(3.0, n), generator.integers(4, size=n)
    offer = generator.integers(max(strategy.actor.layout.offers, 1), size=n)
    answers = (clicked, converted, revenue, affinity)
    clicked, converted, revenue, affinity = (part.astype(np.float32) for part in answers)
    gap, number = gap.astype(np.float32), number.astype(np.float32)
    return AnsweredPages(features, gap, number, slate, clicked, converted, revenue, ad, offer, lines, affinity=affinity)


def _edges(strategy: PageStrategy, shop: ContextBuilder, width: int) -> dict[str, tuple[Edges, Edges]]:
    """Return inputs and outputs of the graphs by their files' names; ``width`` is that of what is carried."""
    actor, layout, size = strategy.actor, strategy.actor.layout, strategy.size

    def edge(kind: str, *shape: int | str) -> dict[str, Any]:
        return {"type": kind, "shape": list(shape)}

    context = strategy.builder.shopper.width
    actor_in = {
        "shopper": edge("float32", "B", context),
        "candidates": edge("int64", "B", "C"),
        "may": edge("bool", "B", "C"),
        "affinity": edge("float32", "B", "C"),
    }
    actor_out = {"slate": edge("float64", "B", "C")}
    if layout.ad:
        actor_out |= {"ad": edge("float64", "B", "C + 1"), "slot": edge("float64", "B", size)}
    if layout.offers:
        actor_out["offer"] = edge("float64", "B", layout.offers)
    if layout.lines is not None:
        actor_out["line_query"] = edge("float64", "B", actor.hidden)
        if actor._line_effects is not None:
            actor_out["line_effects"] = edge("float64", "B", layout.lines)
    shopper = {
        "features": edge("float32", "B", shop.shopper.width),
        "memory": edge("float32", "B", width),
        "gap": edge("float32", "B"),
        "number": edge("float32", "B"),
    }
    reader_out = {"shopper": edge("float32", "B", context), "affinity": edge("float32", "B", "C")}
    page = {
        "slate": edge("int64", "B", size),
        "clicked": edge("float32", "B", size),
        "converted": edge("float32", "B", size),
        "revenue": edge("float32", "B", size),
        "ad": edge("int64", "B"),
        "offer": edge("int64", "B"),
        "lines": edge("int64", "B", size),
        "affinity": edge("float32", "B", size),
    }
    return {
        GRAPH: (actor_in, actor_out),
        READER: (shopper | {"candidates": edge("int64", "B", "C")}, reader_out),
        MEMORY: (shopper | page, {"after": edge("float32", "B", width)}),
    }


def _write(
    strategy: PageStrategy,
    shoppers: FittedShoppers,
    reward: RewardSpec,
    directory: Path,
    world: ReadWorld,
    seed: int,
    said: PageCopy | None,
    writer: TakenWriter | None,
) -> None:
    """Write the files of a bundle, but for the checksums."""
    actor, shop, ensemble = strategy.actor, shoppers.builder, shoppers.ensembles["train"]
    scoring, reading, observing = ActorGraph(actor), ReadGraph(ensemble, shop, reward), ObserveGraph(ensemble)
    edges = _edges(strategy, shop, observing.reader.width)
    graphs: dict[str, nn.Module] = {GRAPH: scoring, READER: reading, MEMORY: observing}
    for name, graph in graphs.items():
        (directory / name).write_bytes(trace_graph(graph.eval(), *edges[name], strict=True))
    (directory / ITEMS).write_bytes(save({"vectors": np.ascontiguousarray(shoppers.builder.catalog.vectors)}))
    if shop.search is not None:
        shop.search.save(directory)
    if actor.layout.lines is not None:
        (directory / LINES).write_bytes(save(scoring.line_table()))
    explained = reason_arrays(strategy, world, usual_pages(strategy, world, seed))
    if said is not None:
        del explained["effect_line"]  # the bank says why
    (directory / REASONS).write_bytes(save({name: np.ascontiguousarray(part) for name, part in explained.items()}))
    with torch.no_grad():
        generator = np.random.default_rng(seed)
        golden = golden_examples(strategy, reading, observing, shop, generator)
    if said is not None:
        said.bank.save(directory / BANK)
        golden |= golden_copy(said, strategy.lines, golden, generator)
    (directory / GOLDEN).write_bytes(save(golden))
    live = {} if writer is None else {WRITER: writer.write(directory / WRITER, shoppers)}
    layout, trained = actor.layout, strategy.trained_on["config"]
    libraries = ("numpy", "onnx", "onnxruntime", "onnxscript", "safetensors", "torch")
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    manifest = {
        "format": FORMAT if said is None else FORMAT_WITH_BANK,
        "hawker": version("hawker"),
        "page": {"size": layout.size, "ad": layout.ad, "offers": layout.offers, "copy": layout.lines is not None},
        "hidden": actor.hidden,
        "width": observing.reader.width,
        "lines": list(strategy.lines),
        **({} if said is None else {"bank": said.to_dict()}),
        **live,
        "rules": {"ad_gap": trained.get("ad_gap", 1), "ad_load": trained.get("ad_cap", 1.0)},
        "longest_gap": NEVER,
        "trained_on": strategy.trained_on,
        "graphs": {
            name: {"opset": OPSET, "inputs": inputs, "outputs": outputs} for name, (inputs, outputs) in edges.items()
        },
        "files": {
            name: {"bytes": (directory / name).stat().st_size, "sha256": sha256(directory / name)} for name in files
        },
        "versions": {name: version(name) for name in libraries},
        "context": strategy.builder.shopper.to_dict(),
        "builder": shoppers.builder.to_dict(),
    }
    write_json(directory / MANIFEST, manifest)
