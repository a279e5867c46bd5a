"""``hawker bench embeddings``: do a language model's vectors of items earn more than TF-IDF, or than ids alone?

Each seed has a catalogue and a log of its own, in which a fifth of the items never appear. Shoppers are fitted to the
log once for each encoding of the items, with all else alike, and PPO learns pages against each. The gold world then
judges where half of a visit's candidates are new: described in words that the log's items share, or in other words
that mean the same; and where none are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hawker.agents.config import WHOLE_PAGES, PageTrainConfig
from hawker.agents.myopic import MyopicPages
from hawker.agents.page_world import read
from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.embeddings_items import TfidfEncoder, by_id, encoded, reworded, texts_of, with_items
from hawker.benchmarks.fidelity import finite, fresh
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.fidelity_cohort import LOGGED
from hawker.benchmarks.leaderboard import keeper, learn_pages, metrics
from hawker.benchmarks.restocked import Restocked, page_worth
from hawker.benchmarks.rollout import rollout
from hawker.benchmarks.side_by_side import Told
from hawker.benchmarks.signal import over_seeds, require_seeds
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure
from hawker.shop.language import Encoder, HashedEncoder, load_encoder
from hawker.shop.models import home
from hawker.shop.reward import RewardSpec
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.diary import Proposer
from hawker.simulators.store import FittedShoppers, load_shoppers
from hawker.simulators.world import World

LLM, TFIDF, BY_ID, NO_TEXT, HASHED = ENCODINGS = ("language model", "tfidf", "ids", "no text", "hashed")
"""How items are known: by a vector of their text beside category, price and provider, by these alone, or by nothing
but an id, whose vector is learned."""

POOLS = {"new": "cold_item_gain", "reworded": "reworded_item_gain", "known": "known_item_gain"}
"""What candidates are drawn from, and the figures that come of it. Half of the candidates are new in the first two."""

STRATEGIES = {"ppo": "strategist", "myopic": "myopic"}
"""What decides, and what its figures begin with."""

MEASURES = ("reward", "page", "ctr", "cvr", "d7", "new")
"""Reward a shopper, reward a page on pages that are the same for all, three rates, and the new items' share of what
was shown."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class EmbeddingsConfig:
    """What is trained and judged.

    Attributes:
        model: The language model, by a name that ``load_encoder`` takes.
        seeds: One catalogue and log each, and for each encoding one fit, training and judgement.
        shoppers: Whose visits are logged.
        days: How long they are logged.
        horizon: Days from a shopper's first visit on that a strategy is followed.
        followed: Shoppers of a strategy.
        asked: Shoppers on whose pages all strategies are asked what they would show.
        pages: Pages of each of them, at most.
        fit: How shoppers are learned; no judge is needed.
        train: How PPO learns pages.
        reward: What a page is worth.
    """

    model: str = "smollm2-135m"
    seeds: tuple[int, ...] = (21, 22, 23)
    shoppers: int = 2_000
    days: int = 56
    horizon: int = int(WHOLE_PAGES.horizon)
    followed: int = 3_000
    asked: int = 1_000
    pages: int = 12
    fit: FitConfig = field(default_factory=lambda: FitConfig(members=2, shares=(0.9, 0.05, 0.05)))
    train: PageTrainConfig = field(default_factory=lambda: replace(WHOLE_PAGES, steps=200_000, critic_first=50_000))
    reward: RewardSpec = WHOLE_PAGES.reward


QUICK = EmbeddingsConfig(
    seeds=(31,),
    shoppers=150,
    days=28,
    followed=100,
    asked=50,
    pages=3,
    fit=FitConfig(members=1, epochs=1, shares=(0.9, 0.05, 0.05)),
    train=replace(WHOLE_PAGES, steps=4_096, shoppers=256, pages=8, batch=1024, critic_first=2_048),
)
"""For a look: its figures say that the benchmark runs, not who wins."""


def bench_embeddings(config: EmbeddingsConfig, told: Told) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        config: What is trained and judged.
        told: Called with a line now and then.

    Returns:
        The report: "figures", "seeds", "arms" with the means of ``MEASURES`` by pool and by strategy and encoding,
        "notes", "details" by seed, and "seconds".

    Raises:
        InputError: No seeds, no such model, or a fit that failed.
    """
    require_seeds(config.seeds, "embeddings.seeds")
    started, model = time.perf_counter(), load_encoder(config.model, _CPU, home() / "vectors")
    if model is None:
        expected = "a language model, or hashed"
        raise InputError("nothing reads the items", where="embeddings.model", got=config.model, expected=expected)
    details: list[dict[str, Any]] = []
    for seed in config.seeds:
        told(f"seed {seed}")
        details.append({"seed": seed, "pools": _one_seed(config, seed, model, told)})
    figures = _figures(details)
    arms = {
        pool: {
            name: {m: float(np.mean([each["pools"][pool][name][m] for each in details])) for m in MEASURES}
            for name in details[0]["pools"][pool]
        }
        for pool in POOLS
    }
    report = {"figures": figures, "seeds": list(config.seeds), "arms": arms, "notes": _notes(figures)}
    checked: dict[str, Any] = finite({**report, "details": details})
    return {**checked, "seconds": round(time.perf_counter() - started, 1)}


Arms = dict[str, dict[str, float]]


def _one_seed(config: EmbeddingsConfig, seed: int, model: Encoder, told: Told) -> dict[str, Arms]:
    """Return the measures by pool, and by strategy and encoding."""
    world = BazaarWorld(replace(load_bazaar(), seed=seed), _CPU)
    logs = cached_logs(world, config.shoppers, config.days, seed, told)
    known, new, other = stock_of(world, fresh(seed, 41))
    pools = restocked(world, known, new, other)
    habits = logging_strategy(world, LOGGED).habits
    arms: dict[str, Arms] = {pool: {} for pool in pools}
    with tempfile.TemporaryDirectory() as folder:
        for encoding, items in encodings(world, other, model, seed).items():
            told(encoding)
            shown = with_items(logs, items, Path(folder) / encoding.replace(" ", "-"))
            fitted = load_shoppers(cached_fit(shown, replace(config.fit, seed=seed), told).shoppers, _CPU)
            require_unseen(fitted, torch.cat([new, other]))
            proxy = read(fitted, fitted.world("train", config.reward.doubts), config.reward)
            train = replace(config.train, seed=seed)
            pages, _ = learn_pages(proxy, fitted, config.reward, train, config.horizon, told, f"ppo, {encoding}")
            for pool, shop in pools.items():
                gold = read(fitted, shop, config.reward)
                lines = torch.arange(len(gold.lines)) if gold.lines else None
                asked: dict[str, Proposer] = {"ppo": pages, "myopic": MyopicPages("myopic", gold, config.reward, lines)}
                serving = keeper(world, "logging", habits, lines)
                found = _judged(gold, asked, serving, ~world.launched, config, seed)
                arms[pool] |= {f"{name}, {encoding}": values for name, values in found.items()}
                said = ", ".join(f"{name} {v['reward']:.2f} ({v['page']:.4f} a page)" for name, v in found.items())
                told(f"{encoding}, {pool} items: {said}")
    return arms


def stock_of(world: BazaarWorld, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the items in stock: those of the log, and two random halves of those that came after it, (m,) each."""
    stocked = torch.from_numpy(world.items.table["stock"].to_numpy() > 0)
    known = (stocked & world.launched).nonzero().squeeze(1)
    fresh_items = (stocked & ~world.launched).nonzero().squeeze(1)
    mixed = fresh_items[torch.randperm(len(fresh_items), generator=_seeded(seed))]
    return known, mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]


def restocked(world: BazaarWorld, known: Tensor, new: Tensor, other: Tensor) -> dict[str, Restocked]:
    """Return the shop by name of ``POOLS``; half of a visit's candidates are new in the first two."""
    half = world.choices // 2
    some = (known, world.choices - half)
    groups = {"new": [(new, half), some], "reworded": [(other, half), some], "known": [(known, world.choices)]}
    return {pool: Restocked(world, groups[pool]) for pool in POOLS}


def encodings(world: BazaarWorld, other: Tensor, model: Encoder, seed: int) -> dict[str, pd.DataFrame]:
    """Return the items table by name of ``ENCODINGS``.

    Args:
        world: The shop.
        other: Items that are described in other words, (m,).
        model: The language model.
        seed: Of TF-IDF's axes.
    """
    which = np.zeros(len(world.items.table), bool)
    which[other.numpy()] = True
    items = reworded(world.items.table, which)
    logged = [text for text, launched in zip(texts_of(items), world.items.launched.tolist(), strict=True) if launched]
    encoders = {LLM: model, TFIDF: TfidfEncoder(logged, model.width, seed), NO_TEXT: None, HASHED: HashedEncoder()}
    tables = {name: encoded(items, encoder) for name, encoder in encoders.items()} | {BY_ID: by_id(items)}
    return {name: tables[name] for name in ENCODINGS}


def require_unseen(fitted: FittedShoppers, items: Tensor) -> None:
    """Refuse shoppers whose log shows one of these items, or has it among its candidates: it would not be new.

    Raises:
        ValueError: It does.
    """
    for arrivals in fitted.arrivals.values():
        if torch.isin(arrivals.candidates[arrivals.mask].long(), items).any():
            raise ValueError("a new item is among the candidates of the log")
    if fitted.support.items[items].any():
        raise ValueError("the log shows a new item")


def _judged(
    gold: World, asked: dict[str, Proposer], serving: Proposer, new: Tensor, config: EmbeddingsConfig, seed: int
) -> Arms:
    """Return the measures of strategies; the same shoppers come for each, and ``new`` (I,) says which items are new."""
    worth = page_worth(gold, serving, asked, config.reward, config.asked, config.pages, fresh(seed, 43))
    found = {}
    for name, strategy in asked.items():
        totals = rollout(gold, strategy, config.followed, config.horizon, _seeded(fresh(seed, 42)))
        share = float(totals.exposure[new].sum() / totals.exposure.sum())
        values = metrics(totals, config.reward) | {"page": worth[name], "new": share}
        found[name] = {measure: values[measure] for measure in MEASURES}
    return found


def _figures(details: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return what the language model's arms earn beyond each rival's, from what each seed found."""
    figures: dict[str, Figure] = {}
    for strategy, prefix in STRATEGIES.items():
        for pool, stem in POOLS.items():
            for rival in ENCODINGS[1:]:
                for measure, suffix in (("reward", ""), ("page", ".page")):
                    arms = [each["pools"][pool] for each in details]
                    ours, theirs = ([a[f"{strategy}, {name}"][measure] for a in arms] for name in (LLM, rival))
                    of = "" if (pool, rival) == ("known", TFIDF) else f"_{rival.replace(' ', '_')}"
                    gains = np.subtract(ours, theirs).tolist()
                    unit = "reward a shopper" if measure == "reward" else "reward a page"
                    figures[f"{prefix}.{stem}{of}{suffix}"] = over_seeds(gains, unit)
    return figures


TOLD_OF = {
    "cold_item_gain_tfidf": "new items, TF-IDF",
    "reworded_item_gain_tfidf": "new items in other words, TF-IDF",
    "known_item_gain": "known items, TF-IDF",
    "cold_item_gain_ids": "new items, ids only",
}
"""Figures that notes are made of."""


def _notes(figures: Mapping[str, Figure]) -> list[str]:
    """Say of the strategist's main figures who wins, or that nobody does."""
    notes = []
    for name, about in TOLD_OF.items():
        gain = figures[f"strategist.{name}"]
        value, low, high = gain["value"], gain["low"], gain["high"]
        if low is None or high is None or value is None:
            verdict = "one seed has no interval"
        elif low <= 0 <= high:
            verdict = f"a tie, the interval holds zero [{low:+.2f}, {high:+.2f}]"
        else:
            verdict = f"{'above' if value > 0 else 'below'} [{low:+.2f}, {high:+.2f}]"
        notes.append(f"{about}: {'-' if value is None else f'{value:+.2f}'} reward a shopper, {verdict}")
    return notes


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
