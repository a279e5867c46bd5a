"""``hawker bench search``: does what is typed into a search box find what was meant, and does that pay?

A bazaar whose visits may begin with a query is logged under its own search, BM25. Shoppers are learned from the log,
and with them what words have to do with items; PPO learns whole pages against them. In the gold world, where what each
item is to each query is known, the pages of new shoppers' visits are graded, beside BM25's own ranking of everything in
stock; and the same strategy is followed once more in a shop where nobody reads what is typed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hawker.agents.config import WHOLE_PAGES, TrainConfig
from hawker.agents.page_world import read
from hawker.benchmarks.bazaar import searching
from hawker.benchmarks.fidelity import finite, fresh
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.leaderboard import METRICS, keeper, learn_pages, metrics
from hawker.benchmarks.rollout import rollout
from hawker.benchmarks.side_by_side import Told
from hawker.benchmarks.signal import over_seeds, require_seeds
from hawker.policies.shopkeeper import Habits
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.diary import Proposer
from hawker.simulators.query_world import QueryWorld
from hawker.simulators.retrieval import eligible_items
from hawker.simulators.search_bazaar import SearchBazaar
from hawker.simulators.store import FittedShoppers, load_shoppers
from hawker.simulators.world import World

Floats = npt.NDArray[np.float64]

TOP = 10
"""Places that NDCG looks at."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class SearchConfig:
    """What is trained and judged.

    Attributes:
        seeds: One log, fit, training and judgement each.
        variant: A bazaar with a search box.
        shoppers: Whose visits are logged.
        days: How long they are logged.
        horizon: Days from a shopper's first visit on that an arm is followed.
        followed: Shoppers of an arm.
        graded: Shoppers whose pages are graded, and ``pages`` of each.
        fit: How shoppers are learned.
        train: How PPO learns pages, and what they are worth.
    """

    seeds: tuple[int, ...] = (21, 22, 23)
    variant: str = "search"
    shoppers: int = 3_000
    days: int = 56
    horizon: int = int(WHOLE_PAGES.horizon)
    followed: int = 4_000
    graded: int = 2_000
    pages: int = 12
    fit: FitConfig = field(default_factory=lambda: FitConfig(members=3))
    train: TrainConfig = field(default_factory=lambda: replace(WHOLE_PAGES, steps=600_000, critic_first=150_000))


QUICK = SearchConfig(
    seeds=(31,),
    shoppers=300,
    days=28,
    followed=200,
    graded=200,
    pages=6,
    fit=FitConfig(members=1, epochs=1),
    train=replace(WHOLE_PAGES, steps=8_192, shoppers=256, pages=8, batch=1024, critic_first=2_048),
)
"""For a look: its figures say that the benchmark runs, not who wins."""


def bench_search(config: SearchConfig, told: Told) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        config: What is trained and judged.
        told: Called with a line now and then.

    Returns:
        The report: "figures", "seeds", "arms" with the means of every metric, and "details" by seed.

    Raises:
        InputError: No seeds, a variant without a search box, or a fit that failed.
    """
    require_seeds(config.seeds, "search.seeds")
    parameters = load_bazaar(config.variant)
    if parameters.search is None:
        raise InputError("a bazaar without a search box", where="search.variant", got=config.variant)
    world = SearchBazaar(parameters, _CPU)
    # The same shoppers in a shop that brings them nothing for what they type.
    deaf = SearchBazaar(replace(parameters, search=replace(parameters.search, found=0)), _CPU)
    details = []
    for seed in config.seeds:
        told(f"seed {seed}")
        details.append(_one_seed(world, deaf, config, seed, told))
    names = details[0]["arms"]
    arms = {
        name: {metric: float(np.mean([each["arms"][name][metric] for each in details])) for metric in METRICS}
        for name in names
    }
    report = {"figures": _figures(details), "seeds": list(config.seeds), "arms": arms, "details": details}
    checked: dict[str, Any] = finite(report)
    return checked


def _one_seed(world: SearchBazaar, deaf: SearchBazaar, config: SearchConfig, seed: int, told: Told) -> dict[str, Any]:
    logs = cached_logs(world, config.shoppers, config.days, seed, told)
    fitted = load_shoppers(cached_fit(logs, replace(config.fit, seed=seed), told).shoppers, _CPU)
    search, reward = fitted.builder.search, config.train.reward
    if search is None:
        raise InputError("no query of the log says anything", where=logs, remedy="log more shoppers")
    train = replace(config.train, seed=seed)
    proxy = read(fitted, fitted.world("train"), reward)
    strategy, _ = learn_pages(proxy, fitted, reward, train, config.horizon, told, "strategist")
    unread = QueryWorld(deaf, search, ("",) * len(deaf.queries), _eligible(fitted))
    popularity = torch.tensor(world.items.table["popularity"].to_numpy(), dtype=torch.float32)
    plain = Habits(exploration=0.0)
    contestants: dict[str, tuple[World, Proposer]] = {
        "strategist": (read(fitted, world, reward), strategy),
        "strategist, query unread": (read(fitted, unread, reward), strategy),
        "bm25": (world, keeper(world, "bm25", plain, score=searching(popularity))),
        "popularity": (deaf, keeper(deaf, "popularity", plain)),
    }
    arms = {}
    for name, (where, proposer) in contestants.items():
        totals = rollout(where, proposer, config.followed, config.horizon, _seeded(fresh(seed, 61)))
        arms[name] = metrics(totals, reward)
        told(f"{name}: reward {arms[name]['reward']:.2f}, CTR {arms[name]['ctr']:.4f}, D7 {arms[name]['d7']:.3f}")
    grades = world.relevance.numpy()
    stocked = _stocked(world)
    rankings: dict[str, npt.NDArray[Any]] = {
        "bm25": world.lexical.numpy() + 1e-3 * (popularity / popularity.max()).numpy(),
        "match": search.match(world.queries),
    }
    ranked = {name: _ranked(scores, stocked) for name, scores in rankings.items()}
    query, slate = _pages(*contestants["strategist"], config, _seeded(fresh(seed, 62)))
    graded = {"strategist": ndcg(slate, query, grades, stocked)}
    graded |= {name: ndcg(order[query], query, grades, stocked) for name, order in ranked.items()}
    silent, shown = _pages(*contestants["strategist, query unread"], config, _seeded(fresh(seed, 62)))
    graded["unread"] = ndcg(shown, silent, grades, stocked)
    told(", ".join(f"NDCG@{TOP} {name} {values.mean():.3f}" for name, values in graded.items()))
    gain = graded["strategist"] - graded["bm25"]
    return {
        "seed": seed,
        "arms": arms,
        "ndcg": {name: float(values.mean()) for name, values in graded.items()},
        "visits": len(gain),
        "gain_error": float(gain.std(ddof=1) / len(gain) ** 0.5),
    }


def _eligible(fitted: FittedShoppers) -> npt.NDArray[np.bool_]:
    return eligible_items(fitted.arrivals["train"], len(fitted.builder.catalog)).numpy()


def _stocked(world: SearchBazaar) -> npt.NDArray[np.bool_]:
    """Return True for items that the world ever shows, shape (I,)."""
    launched: npt.NDArray[np.bool_] = world.launched.numpy()
    return launched & (world.items.table["stock"] > 0).to_numpy()


def _ranked(scores: npt.NDArray[Any], eligible: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the best eligible items of each row of scores (Q, I), best first, shape (Q, TOP)."""
    return np.argsort(np.where(eligible, -scores, np.inf), 1, kind="stable")[:, :TOP]


@torch.no_grad()
def _pages(
    world: World, strategy: Proposer, config: SearchConfig, generator: torch.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the queries of visits (V,) of new shoppers, and the slates of their first pages (V, K)."""
    here, seen = world.arrive(config.graded, generator), []
    for _ in range(config.pages):
        decision = strategy.propose(here.context, generator)
        query = here.state["query"]
        rows = (query != EMPTY) & (here.state["page"] == 0)
        seen.append((query[rows], decision.slate[rows]))
        here, outcome = world.respond(here, decision, generator)
        here = here.replaced(outcome.gone, world.arrive(config.graded, generator))
    found: list[Tensor] = [torch.cat(parts) for parts in zip(*seen, strict=True)]
    return found[0].numpy(), found[1].numpy()


def ndcg(
    slate: npt.NDArray[np.int64],
    query: npt.NDArray[np.int64],
    grades: npt.NDArray[np.int64],
    eligible: npt.NDArray[np.bool_],
) -> Floats:
    """Return the NDCG@10 of pages with gains of 2^grade - 1 (Burges et al. 2005), shape (V,).

    Args:
        slate: Catalog indices, in order, shape (V, K); ``EMPTY`` earns nothing.
        query: Number of each page's query, shape (V,).
        grades: Of each query and item, 0 to 3, shape (Q, I).
        eligible: True for items that could be shown, shape (I,): the best ten of them have an NDCG of 1.
    """
    discount = 1 / np.log2(np.arange(2, TOP + 2))
    gains = 2.0**grades - 1
    shown = slate[:, :TOP]
    got = np.where(shown == EMPTY, 0.0, gains[query[:, None], shown.clip(min=0)])
    best = -np.sort(-gains * eligible, 1)[:, :TOP]
    ideal = (best * discount[: best.shape[1]]).sum(1)[query]
    earned = (got * discount[: got.shape[1]]).sum(1)
    found: Floats = np.divide(earned, ideal, out=np.ones_like(earned), where=ideal > 0)  # nothing could be found
    return found


def _figures(details: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return the figures from what each seed found."""

    def graded(name: str) -> Floats:
        return np.array([each["ndcg"][name] for each in details])

    def reward(name: str) -> Floats:
        return np.array([each["arms"][name]["reward"] for each in details])

    unit, paid = "NDCG@10", "reward a shopper"
    found = {f"search.ndcg_{name}": over_seeds(graded(name).tolist(), unit) for name in details[0]["ndcg"]}
    gain = over_seeds((graded("strategist") - graded("bm25")).tolist(), unit)
    if len(details) == 1:  # of one strategy: the interval is over the visits that were graded
        half, value = 1.96 * details[0]["gain_error"], float((graded("strategist") - graded("bm25"))[0])
        gain = {**gain, "low": value - half, "high": value + half, "n": details[0]["visits"]}
    found["search.ndcg_gain"] = gain
    found["search.reward"] = over_seeds(reward("strategist").tolist(), paid)
    for name, other in (("unread", "strategist, query unread"), ("bm25", "bm25")):
        found[f"search.reward_gain_{name}"] = over_seeds((reward("strategist") - reward(other)).tolist(), paid)
    return found


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
