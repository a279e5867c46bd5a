"""``hawker bench speed``: how many pages simulated shoppers see in a second, and how much of that their networks take.

The shoppers are the train role of those that ``hawker bench fidelity`` fits to its first log, found again by what they
are made from; the environment is the whole storefront. A catalog too small is filled up with items like those it has.
What large catalogs cost is timed with candidates that are retrieved for each shopper, from few items and from many.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hawker.agents.config import WHOLE_PAGES, TrainConfig
from hawker.benchmarks.fidelity import QUICK as QUICK_FIDELITY
from hawker.benchmarks.fidelity import FidelityConfig
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.side_by_side import Told
from hawker.benchmarks.speed_learning import Learning, learning_rates
from hawker.envs.page import STOREFRONT
from hawker.envs.storefront import Storefront
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.devices import choose_threads
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.reward import RewardSpec
from hawker.simulators.appeal import ARCHITECTURES
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.frozen_pages import Came, Carried
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.reader import ReadWorld
from hawker.simulators.retrieval import RetrievingWorld, unfilled
from hawker.simulators.shopper import Ensemble, ShopperModel
from hawker.simulators.store import FIRST_ARCHITECTURE, FittedShoppers, load_shoppers
from hawker.simulators.taste_classes import TasteClasses
from hawker.simulators.world import World

REWARD = RewardSpec(click=1.0, conversion=5.0, revenue=0.1, ad_income=1.0, return_visit=2.0, ad=0.1)
"""Every part of a reward is worked out."""

ACTIONS = 8
"""Batches of random pages, drawn before anything is timed and shown in turn."""

PER_ITEM = ("item_vectors", "log_price", "own_effect.weight", "own_taste.weight", "own_item.weight", ".own")
COPIED = ("in_view.vectors", "kinds")
PER_POSITION = ("position", "memory.look")

APART = 0.3
"""How far a further item is from the one that it is like, in differences of two others: standard deviation."""

ASKED, RECALLS = 1_000, 3
"""Shoppers whose searches are compared with exact ones, and how often searches are learned anew for that."""


@dataclass(frozen=True)
class SpeedConfig:
    """What is timed.

    Attributes:
        shoppers: Directory of fitted shoppers; None for those of ``hawker bench fidelity``.
        fidelity: The benchmark that made them.
        items: Items of the catalog.
        many_items: Items of the largest catalog.
        size: Slots of a page.
        choices: Candidates.
        batch: Shoppers of the environment that is timed.
        few, many: Shoppers of the smallest and the largest environment.
        seconds: How long each timing takes, about.
        repeats: Timings; what is compared is timed in turn.
        processes: Whether two processes are timed too.
        train: How PPO learns while it is timed; as on the leaderboard, but that the actor learns from the first page
            on: pages that teach the critic alone are faster.
    """

    shoppers: Path | None = None
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    items: int = 1_000
    many_items: int = 100_000
    size: int = 10
    choices: int = 50
    batch: int = 4_096
    few: int = 1_024
    many: int = 65_536
    seconds: float = 1.0
    repeats: int = 15
    processes: bool = True
    train: TrainConfig = field(default_factory=lambda: replace(WHOLE_PAGES, critic_first=0))


QUICK = SpeedConfig(fidelity=QUICK_FIDELITY, many_items=10_000, many=8_192, seconds=0.2, repeats=3)
"""For a look."""


def bench_speed(config: SpeedConfig, told: Told) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        ``figures``: medians over the repeats with their 95% intervals; ``load``: the machine's load averages before
        and after; ``timings``: all of them; ``seeds``, ``seconds``, ``shoppers``: the digest of the artefact.

    Raises:
        InputError: The shoppers cannot be used, or a number of the config.
    """
    for name in ("items", "many_items", "size", "choices", "batch", "few", "many", "repeats", "seconds"):
        if getattr(config, name) <= 0:
            raise InputError("bad number", where=f"speed.{name}", got=getattr(config, name), expected="above 0")
    numbers = (config.size, config.choices, config.items, config.many_items)
    if list(numbers) != sorted(numbers):
        expected = "slots <= candidates <= items <= many items"
        raise InputError("too few items", where="speed", got=numbers, expected=expected)
    started, load = time.perf_counter(), _load()
    directory = config.shoppers or _judged(config.fidelity, told)
    fitted = load_shoppers(directory, torch.device("cpu"))
    world = enlarged(fitted, config.items, config.size, config.choices)
    told(f"{config.items:,} items, {config.size} slots, {config.choices} candidates, {len(world.models)} members")
    bench = Stepper(world, config.batch)
    small, large, passes = Stepper(world, config.few), Stepper(world, config.many), Passes(world, config.batch)
    timings = in_turn(
        {
            "env": (bench.step, config.batch),
            "bare": (passes.step, config.batch),
            "few": (small.step, config.few),
            "many": (large.step, config.many),
        },
        config,
    )
    told(f"{np.median(timings['env']):,.0f} user-steps/s, bare forward passes {np.median(timings['bare']):,.0f}/s")
    timed = {name: np.array(values) for name, values in timings.items()}
    figures = {
        "env.user_steps_per_s": _median(timed["env"], "user-steps per second"),
        "bare.user_steps_per_s": _median(timed["bare"], "user-steps per second"),
        "env.of_bare_forward": _median(timed["env"] / timed["bare"], "ratio"),
        "env.cost_ratio_shoppers": _median(timed["few"] / timed["many"], "ratio"),
    }
    figures |= _large_catalogs(fitted, config, timings, told)
    if config.processes:
        told("two processes against one")
        one, two = two_processes(directory, config)
        timings |= {"one_process": one, "two_processes": two}
        figures["env.two_processes"] = _median(np.array(two) / np.array(one), "ratio")
    for name, threads in (("ppo.one_thread", 1), ("ppo", 2)):
        told(f"PPO, threads: {threads}")
        learning = Learning(config.train, config.train.reward, config.train.horizon, config.repeats, threads)
        rates, peak = learning_rates(functools.partial(_shop, directory, config), learning)
        timings[name] = rates
        figures[f"{name}.frames_per_s"] = _median(np.array(rates), "pages per second")
        figures[f"{name}.peak_rss_mib"] = figure(peak, None, None, 1, "MiB")
    return {
        "figures": figures,
        "timings": timings,
        "load": {"before": load, "after": _load()},
        "shoppers": fitted.digest,
        "seeds": [0],
        "seconds": round(time.perf_counter() - started, 1),
    }


def _large_catalogs(
    fitted: FittedShoppers, config: SpeedConfig, timings: dict[str, list[float]], told: Told
) -> dict[str, Figure]:
    """Time few items and many with candidates retrieved for each shopper, and compare searches with exact ones."""
    worlds = [
        enlarged(fitted, items, config.size, config.choices, retrieved=True)
        for items in (config.items, config.many_items)
    ]
    few, many = map(RetrievingWorld, worlds)
    steps = {"few_items": Stepper(few, config.batch).step, "many_items": Stepper(many, config.batch).step}
    timings |= in_turn({name: (step, config.batch) for name, step in steps.items()}, config)
    # Strategies know their shoppers by a reader, whose readings of histories are what is searched for.
    read = ReadWorld(worlds[1], worlds[1].builder, worlds[1].ensemble, REWARD)
    recalls = [
        RetrievingWorld(read, seed=seed).recall(ASKED, torch.Generator().manual_seed(RECALLS + seed))
        for seed in range(RECALLS)
    ]
    found, items = config.choices - many.exploring, config.many_items
    told(
        f"{items:,} items: retrieval finds {np.median(recalls):.1%} of the best {found} for each shopper, "
        f"{many.exploring} more candidates explore; {np.median(timings['many_items']):,.0f} user-steps/s, "
        f"{np.median(timings['few_items']):,.0f} with {config.items:,} items"
    )
    return {
        "env.cost_ratio_items": _median(np.array(timings["few_items"]) / np.array(timings["many_items"]), "ratio"),
        "retrieval.recall": _median(np.array(recalls), "share"),
    }


def in_turn(steps: dict[str, tuple[Callable[[], None], int]], config: SpeedConfig) -> dict[str, list[float]]:
    """Return the rates of some steps, each of so many shoppers, timed in turn."""
    timings: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(config.repeats):
        for name, (step, n) in steps.items():
            timings[name].append(rate(step, n, config.seconds))
    return timings


def _shop(directory: Path, config: SpeedConfig) -> LearnedWorld:
    fitted = load_shoppers(directory, torch.device("cpu"))
    return enlarged(fitted, config.items, config.size, config.choices)


def _judged(config: FidelityConfig, told: Told) -> Path:
    """Return the shoppers of the benchmark's first seed, fitted unless they are there."""
    world, seed = BazaarWorld(load_bazaar(config.variant), torch.device("cpu")), config.seeds[0]
    logs = cached_logs(world, config.shoppers, config.days, seed, told)
    return cached_fit(logs, replace(config.fit, seed=seed), told).shoppers


def enlarged(fitted: FittedShoppers, items: int, size: int, choices: int, *, retrieved: bool = False) -> LearnedWorld:
    """Return the world of fitted shoppers with so many items, slots and candidates.

    A further item is like one of those there are and differs from it, in features, taste and price, by the difference
    of two others drawn at random, times 0.3 times a normal number: no two are the same, and they vary as items do. What
    it has in common with the rest of a page it has from the one that it is like. Further slots are looked at as the
    last one is. Candidates are spread over the catalog from a random start, or will be ``retrieved`` for each shopper.
    """
    catalog, size_now = fitted.builder.catalog, fitted.size
    own, generator = len(catalog), torch.Generator().manual_seed(0)
    row = torch.arange(items) % own
    one = torch.randint(own, (items,), generator=generator)
    other = (one + torch.randint(1, max(own, 2), (items,), generator=generator)) % own
    apart = APART * torch.randn(items, generator=generator) * (torch.arange(items) >= own)
    ids = tuple(f"{catalog.item_ids[i]}+{n // own}" for n, i in enumerate(row.tolist()))
    wide = replace(catalog, item_ids=ids, vectors=catalog.vectors[row.numpy()])
    builder, first = ContextBuilder(fitted.builder.shopper, wide), FIRST_ARCHITECTURE["train"]
    ensemble, place = fitted.ensembles["train"], torch.arange(size).clamp(max=size_now - 1)

    def widened(model: nn.Module, large: nn.Module) -> None:
        state = {}
        for name, value in model.state_dict().items():
            state[name] = value
            if name.endswith(PER_ITEM):
                state[name] = value[row] + apart.reshape(-1, *[1] * (value.ndim - 1)) * (value[one] - value[other])
            elif name in COPIED or name in PER_POSITION:
                state[name] = value[row if name in COPIED else place]
        large.load_state_dict(state)

    models, recorded = [], ensemble.models[0].recorded
    for i, model in enumerate(ensemble.models):
        architecture = ARCHITECTURES[(first + i) % len(ARCHITECTURES)]
        models.append(ShopperModel(builder, size, architecture, 0.5, torch.Generator(), recorded, fitted.lines))
        widened(model, models[-1])
    tastes = None
    if ensemble.tastes is not None:
        tastes = TasteClasses(builder, size, recorded, fitted.lines, 0.5, 0.5)
        widened(ensemble.tastes, tastes)
    lines, arrivals = () if fitted.lines is None else fitted.lines.texts, fitted.arrivals["train"]
    if retrieved:
        arrivals = unfilled(arrivals, choices)
    else:
        n = len(arrivals.shopper)
        start, step = (torch.randint(1, high + 1, (n, 1), generator=generator) for high in (items, items // choices))
        candidates = (start + step * torch.arange(choices)) % items
        arrivals = Context(arrivals.shopper, candidates, candidates >= 0, torch.zeros(n, choices))
    return LearnedWorld(builder, Ensemble(models, ensemble.calibration, tastes), arrivals, size, lines)


class Stepper:
    """An environment and the random pages to show in it."""

    def __init__(self, world: World, n: int) -> None:
        self.storefront = Storefront(world, n, REWARD, STOREFRONT)
        self.storefront.reset(0)
        self._actions = [random_pages(world, n, seed) for seed in range(ACTIONS)]
        self._count = 0

    @torch.no_grad()
    def step(self) -> None:
        """Take one step of all shoppers."""
        self._count += 1
        self.storefront.step(self._actions[self._count % ACTIONS])


def random_pages(world: World, n: int, seed: int) -> Tensor:
    """Return actions of ``hawker/Storefront-v0``, shape (n, A): no item twice, every part drawn evenly."""
    generator = torch.Generator().manual_seed(seed)
    slate = torch.rand(n, world.choices, generator=generator).topk(world.size, 1).indices
    tiers, lines = world.offers, len(world.lines) + 1
    highs = ((world.choices + 1, 1), (world.size, 1), (tiers, 1), (lines, world.size))
    rest = [torch.randint(high, (n, width), generator=generator) for high, width in highs]
    return torch.cat([slate, *rest], 1)


class Passes:
    """The networks' forward passes alone, of a batch as an environment meets it after some steps.

    Each shopper's own member says what a page means to them, reads how they answered, and says whether they leave and
    when they come back. Nothing is drawn, kept, rewarded or replaced, and the pages stand ready.
    """

    def __init__(self, world: LearnedWorld, n: int) -> None:
        stepper = Stepper(world, n)
        for _ in range(10):
            stepper.step()
        storefront = stepper.storefront
        assert storefront.shown is not None
        shoppers, (context, decision, outcome) = storefront.shoppers, storefront.shown
        state = shoppers.state
        first = world.models[0]
        page = first.page(context.shopper, decision, None)
        carried = Carried.read(state["memory"], state["counts"], state["gap"], state["number"])
        converted = torch.zeros_like(outcome.clicked) if outcome.converted is None else outcome.converted
        came = Came.read(page, carried, outcome.clicked, converted, outcome.revenue, first.recorded.offers)
        self._work = []
        for block, places in world.blocks(shoppers):
            for model, own in zip(world.models, places, strict=True):
                parts = (page.of(block).of(own), carried.of(block).of(own), came.of(block).of(own))
                self._work.append((model, parts))

    @torch.inference_mode()
    def step(self) -> None:
        """Pass every shopper through their member once."""
        for model, (page, carried, came) in self._work:
            read = model.liking(page, carried).read
            if model.memory is not None and read is not None:
                model.memory.after(read, came)


def rate(step: Callable[[], None], n: int, seconds: float) -> float:
    """Return user-steps per second over about so many seconds, at least two steps."""
    count, started = 0, time.perf_counter()
    while count < 2 or time.perf_counter() - started < seconds:
        step()
        count += 1
    return n * count / (time.perf_counter() - started)


def two_processes(directory: Path, config: SpeedConfig) -> tuple[list[float], list[float]]:
    """Return rates of one process alone and of two at once, summed, in turn."""
    spawn = multiprocessing.get_context("spawn")
    barrier, rates = spawn.Barrier(2), spawn.Queue()
    workers = [
        spawn.Process(target=_work, args=(who, directory, config, barrier, rates), daemon=True) for who in range(2)
    ]
    for worker in workers:
        worker.start()
    found: list[tuple[str, int, float]] = [rates.get(timeout=600) for _ in range(3 * config.repeats)]
    for worker in workers:
        worker.join()
    one = [value for phase, _, value in sorted(found, key=lambda row: row[1]) if phase == "one"]
    both = [sum(value for phase, i, value in found if phase == "two" and i == n) for n in range(config.repeats)]
    return one, both


def _work(who: int, directory: Path, config: SpeedConfig, barrier: Barrier, rates: Any) -> None:
    choose_threads()
    stepper = Stepper(_shop(directory, config), config.batch)
    stepper.step()
    for i in range(config.repeats):
        for phase in ("one", "two"):
            barrier.wait(600)
            if phase == "two" or who == i % 2:
                rates.put((phase, i, rate(stepper.step, config.batch, config.seconds)))


def _median(values: np.ndarray[Any, np.dtype[np.float64]], unit: str) -> Figure:
    """Return the median with its interval by order statistics, as wide as all values where they are few."""
    values = np.sort(values)
    n = len(values)
    low = max(int(np.floor(n / 2 - 0.98 * np.sqrt(n))), 0)
    return figure(float(np.median(values)), float(values[low]), float(values[n - 1 - low]), n, unit)


def _load() -> list[float]:
    return [round(value, 2) for value in os.getloadavg()]
