"""``hawker bench why``: do the reasons that decisions give for themselves move the scores that they are said to move?

Reasons are shares of scores against what is usual, see `hawker.policies.page_reasons`. They are held against another
way of removing a group, on pages of shoppers whom neither the strategy nor what is usual has met: the group is taken
from other shoppers' pages, or from other candidates of the page, drawn at random, and the score is averaged over the
draws. A decision is one part of a page, drawn at random from those that it has: the item of a slot, the ad or that
there is none, its slot, the offer, a line of copy.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binomtest

from hawker.agents.config import WHOLE_PAGES, PageTrainConfig
from hawker.agents.page_reasons import reasons_of
from hawker.agents.page_world import read
from hawker.benchmarks.fidelity import FidelityConfig, finite, fresh
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.leaderboard import learn_pages
from hawker.benchmarks.side_by_side import Told
from hawker.benchmarks.signal import require_seeds
from hawker.policies.page_actor import PageStrategy
from hawker.policies.page_reasons import PARTS, PageReasons, Pages, picks_of
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.figures import Figure, figure
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.store import load_shoppers
from hawker.simulators.world import World

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class WhyConfig:
    """What is trained and explained.

    Attributes:
        seeds: One log, fit and training each.
        shoppers: Whose visits are logged.
        days: How long they are logged.
        decisions: Explained for each seed, each on a page of its own.
        draws: Other pages and candidates that a group is taken from.
        fit: How shoppers are learned; as for ``hawker bench fidelity``, whose logs and fits these are.
        train: How PPO learns from them; as ``hawker train`` does.
        reward: What a page is worth.
    """

    seeds: tuple[int, ...] = (21, 22, 23)
    shoppers: int = 6_000
    days: int = 56
    decisions: int = 1_000
    draws: int = 100
    fit: FitConfig = field(default_factory=lambda: FidelityConfig().fit)
    train: PageTrainConfig = WHOLE_PAGES
    reward: RewardSpec = WHOLE_PAGES.reward


QUICK = WhyConfig(
    seeds=(31,),
    shoppers=300,
    decisions=200,
    fit=FitConfig(members=2, epochs=2),
    train=PageTrainConfig(steps=8_192, shoppers=256, pages=8, batch=1024, greedy=4.0),
)
"""For a look, at what a short training has learned."""


class Removals(NamedTuple):
    """What becomes of decisions when groups are removed.

    Attributes:
        part: What was decided, a name of ``PARTS`` each, shape (n,).
        size: Shares of the groups, shape (n, G); NaN where a decision cannot have such a reason.
        moved: By how much the score changes without a group, averaged over draws, shape (n, G).
        once: The same where the group is replaced by the first draw alone, shape (n, G).
    """

    part: Array
    size: Floats
    moved: Floats
    once: Floats


def bench_why(config: WhyConfig, told: Told) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The report: "figures" over all decisions, "seeds", "details" by seed, "seconds".

    Raises:
        InputError: No seeds, or a fit that failed.
    """
    require_seeds(config.seeds, "why.seeds")
    started, world = time.perf_counter(), BazaarWorld(load_bazaar(), _CPU)
    details: list[dict[str, Any]] = []
    found: list[Removals] = []
    for seed in config.seeds:
        told(f"seed {seed}")
        logs = cached_logs(world, config.shoppers, config.days, seed, told)
        fitted = load_shoppers(cached_fit(logs, replace(config.fit, seed=seed), told).shoppers, _CPU)
        proxy, train = read(fitted, fitted.world("train"), config.reward), replace(config.train, seed=seed)
        strategy = learn_pages(proxy, fitted, config.reward, train, WHOLE_PAGES.horizon, told, "ppo")[0].trained
        reasons = reasons_of(strategy, proxy, fresh(seed, 21))
        gold = read(fitted, world, config.reward)
        pages = meet(strategy, gold, config.decisions, fresh(seed, 22))
        before = time.perf_counter()
        reasons.explain(pages.rows(slice(WHOLE)))
        seconds = (time.perf_counter() - before) / len(pages.may[:WHOLE])
        removals = remove(reasons, pages, config.draws, fresh(seed, 23))
        figures = faithfulness(removals, fresh(seed, 24))
        told(f"faithful: {figures['why.faithful']['value']:.3f}; {seconds * 1000:.0f} ms a page")
        details.append({"seed": seed, "figures": figures, "seconds": seconds})
        found.append(removals)
    together = Removals(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    figures = faithfulness(together, fresh(config.seeds[0], 24))
    pace = [detail["seconds"] for detail in details]
    figures["why.seconds"] = figure(float(np.mean(pace)), None, None, len(pace) * WHOLE, "seconds for a whole page")
    report = {"figures": figures, "seeds": list(config.seeds), "details": details}
    checked: dict[str, Any] = finite(report)
    return {**checked, "seconds": round(time.perf_counter() - started, 1)}


WHOLE = 100
"""Whole pages that are explained to see how long it takes."""

PAGES = 8
"""Pages that shoppers may have seen before the one that is explained: from none to one fewer."""


@torch.no_grad()
def meet(strategy: PageStrategy, world: World, n: int, seed: int) -> Pages:
    """Return n pages that a strategy draws, each for another new shopper of a world, early or late in their lives."""
    generator = torch.Generator(world.device).manual_seed(seed)
    here, kept = world.arrive(n, generator), []
    for _ in range(PAGES):
        decision = strategy.propose(here.context, generator)
        kept.append((here.context, decision))
        here, _ = world.respond(here, decision, generator)
    when = (torch.randperm(n, generator=generator) % PAGES).cpu().numpy()

    def at(values: list[torch.Tensor | None]) -> Any:
        there = [value.cpu().numpy() for value in values if value is not None]
        return np.stack(there)[when, np.arange(n)] if there else None

    names = ("shopper", "candidates", "mask", "affinity")
    context = Context(*(at([getattr(seen, name) for seen, _ in kept]) for name in names))
    parts = ("slate", "log_prob", "ad", "offer", "copy")
    chosen = Decision(*(at([getattr(decision, name) for _, decision in kept]) for name in parts))
    return Pages(context, picks_of(context, chosen), context.mask)


def remove(reasons: PageReasons, pages: Pages, draws: int, seed: int) -> Removals:
    """Explain one part of each page, drawn at random, and remove every group that may be a reason for it.

    Args:
        reasons: Explain the pages.
        pages: B of them.
        draws: Other pages, other candidates and other tiers that a group is taken from.
        seed: Of the parts and the draws.
    """
    generator, n = np.random.default_rng(seed), len(pages.may)
    part, slot = _drawn(reasons.there(pages), generator)
    groups = tuple(dict.fromkeys(name for known in reasons.groups.values() for name in known))
    size, moved, once = np.full((3, n, len(groups)), np.nan)
    other = (np.arange(n)[:, None] + generator.integers(1, n, (n, draws))) % n  # never the page itself
    tiers = np.zeros((n, draws), np.int64) if pages.picks.offer is None else pages.picks.offer[other]
    for name in dict.fromkeys(part.tolist()):
        rows = np.flatnonzero(part == name)
        some, at = pages.rows(rows), slot[rows]
        told = reasons.explain_part(some, name, at if name in ("slate", "copy") else None)
        keys = reasons.others(some, name, at)[:, None] * generator.random((len(rows), draws, pages.may.shape[1]))
        elsewhere = (pages.context.shopper[other[rows]], keys.argmax(2), tiers[rows])
        for i, group in enumerate(told.groups):
            scores, column = reasons.replaced(some, name, at, group, *elsewhere), groups.index(group)
            size[rows, column] = told.size[:, 0, i]
            moved[rows, column], once[rows, column] = np.abs((scores.mean(1), scores[:, 0]) - told.score[:, 0])
    if pages.picks.ad is not None:  # there being no ad has no item's reasons
        none = np.flatnonzero((part == "ad") & (pages.picks.ad == EMPTY))
        columns = [groups.index(group) for group in reasons.groups["ad"] if group not in reasons.groups["slot"]]
        size[none[:, None], columns] = np.nan
    return Removals(part, size, moved, once)


def _drawn(there: dict[str, npt.NDArray[np.bool_]], generator: np.random.Generator) -> tuple[Array, Array]:
    """Return one part of each page and its place, drawn evenly from the parts that it has, then from their places."""
    has = np.stack([found.any(1) for found in there.values()], 1)
    part = np.where(has, generator.random(has.shape), -1.0).argmax(1)
    slot = np.zeros(len(part), np.int64)
    for i, found in enumerate(there.values()):
        chosen = np.where(found, generator.random(found.shape), -1.0).argmax(1)
        slot = np.where(part == i, chosen, slot)
    return np.array(list(there))[part], slot


def faithfulness(removals: Removals, seed: int) -> dict[str, Figure]:
    """Return how often removing the first named reason moves a score more than removing another one.

    Args:
        removals: Of decisions.
        seed: Of the reasons that are compared with.

    Returns:
        ``why.faithful``: against one of the decision's other possible reasons, drawn evenly; ``.PART`` of one part;
        ``.against_second``: against the reason named second; ``.one_draw``: where groups are taken from one other
        page or candidate; ``.random``: of two possible reasons drawn evenly, the first against the second: what
        chance gives; ``.last``: of the reason with the smallest share against another. Shares of decisions, with exact
        (Clopper-Pearson) intervals; ``why.first_moves`` and ``why.other_moves``: by how much each moves scores.
    """
    generator = np.random.default_rng(seed)
    possible = ~np.isnan(removals.size)
    order = np.argsort(np.where(possible, -np.abs(removals.size), np.inf), axis=1, kind="stable")
    first, second, row = order[:, 0], order[:, 1], np.arange(len(order))
    last = order[row, possible.sum(1) - 1]

    def drawn(but: Array) -> Array:
        free = possible & (np.arange(possible.shape[1]) != but[:, None])
        found: Array = np.where(free, generator.random(free.shape), -1.0).argmax(1)
        return found

    other = drawn(first)
    any_one = drawn(np.full(len(order), -1))
    another, beside = drawn(any_one), drawn(last)
    moved, once = removals.moved, removals.once

    def more(wins: Array) -> Figure:
        n, count = len(wins), int(wins.sum())
        if not n:
            return figure(None, None, None, 0, "share of decisions")
        interval = binomtest(count, n).proportion_ci(method="exact")
        return figure(count / n, interval.low, interval.high, n, "share of decisions")

    better = moved[row, first] > moved[row, other]
    figures = {"why.faithful": more(better)}
    figures |= {f"why.faithful.{part}": more(better[removals.part == part]) for part in PARTS if part in removals.part}
    figures["why.faithful.against_second"] = more(moved[row, first] > moved[row, second])
    figures["why.faithful.one_draw"] = more(once[row, first] > once[row, other])
    figures["why.faithful.random"] = more(moved[row, any_one] > moved[row, another])
    figures["why.faithful.last"] = more(moved[row, last] > moved[row, beside])
    for name, which in (("first", first), ("other", other)):
        values = moved[row, which]
        half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
        mean = float(values.mean())
        figures[f"why.{name}_moves"] = figure(mean, mean - half, mean + half, len(values), "log-odds")
    return figures
