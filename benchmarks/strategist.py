"""``hawker bench strategist``: does a language model's copy, learned with the pages it stands on, earn its place?

On the logs of the leaderboard, PPO learns whole pages; then what is said on them is replaced: by templates, by the
lines of a writer tuned on the log, and by those of the writer that was trained in turn with the pages. Everything is
learned from logs; new shoppers of the gold world, the same for every arm, say what each earns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hawker.agents.bank import fill_bank
from hawker.agents.bank_export import SURFACE
from hawker.agents.config import WHOLE_PAGES, RoundsConfig, TrainConfig
from hawker.agents.copy_reward import CopyReward
from hawker.agents.page_world import read, rules_of
from hawker.agents.rounds import co_train
from hawker.agents.shown import assignments_of, most_shown, shown_places
from hawker.agents.writer_config import GrpoConfig, RwrConfig, SftConfig
from hawker.agents.writer_data import discount_of_tiers, draw_assignments, logged_lines
from hawker.agents.writer_rwr import rwr
from hawker.agents.writer_sft import sft
from hawker.agents.writer_training import Stage
from hawker.benchmarks.fidelity import FidelityConfig, finite, fresh
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.leaderboard import METRICS, metrics
from hawker.benchmarks.rollout import rollout
from hawker.benchmarks.side_by_side import Told
from hawker.benchmarks.signal import over_seeds, require_seeds
from hawker.policies.copy_bank import Candidate, CopyBank, build_bank
from hawker.policies.guardrails import Guardrails
from hawker.policies.page_actor import LikeliestPages, PageStrategy
from hawker.policies.strategist import BankTable, Strategist
from hawker.policies.writer import Writer
from hawker.shop.artefacts import copy_directory, find_directory
from hawker.shop.audiences import Audiences
from hawker.shop.figures import Figure
from hawker.shop.logs import read_logs
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.diary import Proposer
from hawker.simulators.store import FittedShoppers, load_shoppers
from hawker.simulators.world import World

_CPU = torch.device("cpu")

ARMS = ("logged lines", "template copy", "sft copy", "cotrained")
"""Pages with the lines of the log that PPO chooses; the same pages with templates, and with the first writer's lines;
and the best round of pages and writer trained in turn, as the judge has it."""


@dataclass(frozen=True)
class StrategistConfig:
    """What is trained and judged.

    Attributes:
        model: The language model.
        seeds: One log, fit, training and judgement each.
        shoppers: Whose visits are logged.
        days: How long they are logged.
        horizon: Days from a shopper's first visit on that an arm is followed.
        followed: Shoppers of an arm.
        fit: How shoppers are learned; as for ``hawker bench fidelity``, whose logs and fits these are.
        train: How PPO learns pages, and what they are worth.
        sft: How the writer is tuned on the log.
        rwr: How it learns from its own lines before the first round.
        writing: How it is optimised in each round.
        rounds: How often pages and writer are trained in turn.
        places: Items, audiences and discounts that banks hold lines for, at most.
        count: Lines drawn for each.
    """

    model: str = "smollm2-135m"
    seeds: tuple[int, ...] = (21, 22, 23)
    shoppers: int = 6_000
    days: int = 56
    horizon: int = int(WHOLE_PAGES.horizon)
    followed: int = 4_000
    fit: FitConfig = field(default_factory=lambda: FidelityConfig().fit)
    train: TrainConfig = WHOLE_PAGES
    sft: SftConfig = field(default_factory=SftConfig)
    rwr: RwrConfig = field(default_factory=RwrConfig)
    writing: GrpoConfig = field(default_factory=GrpoConfig)
    rounds: int = 2
    places: int = 400
    count: int = 4


QUICK = StrategistConfig(
    seeds=(31,),
    shoppers=300,
    days=28,
    followed=200,
    fit=FitConfig(members=2, epochs=2),
    train=replace(WHOLE_PAGES, steps=8_192, shoppers=256, pages=8, batch=1024, critic_first=2_048),
    sft=SftConfig(steps=2, batch=4, rows=4),
    rwr=RwrConfig(steps=2, batch=4, rows=4, briefs=4, lines=4),
    writing=GrpoConfig(steps=2, batch=4, rows=4, group=4, tokens=12),
    rounds=1,
    places=8,
    count=2,
)
"""For a look: its figures say that the benchmark runs, not who wins."""


def bench_strategist(config: StrategistConfig, told: Told, *, keep: Path | None = None) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        config: What is trained and judged.
        told: Called with a line now and then.
        keep: Where runs are kept, by seed: a benchmark that was broken off goes on from there.

    Returns:
        The report: "figures", "seeds", "arms" with the means of every metric, and "details" by seed.

    Raises:
        InputError: No seeds, no such model, or a fit or training that failed.
    """
    require_seeds(config.seeds, "strategist.seeds")
    world, details = BazaarWorld(load_bazaar(), _CPU), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in config.seeds:
            told(f"seed {seed}")
            details.append(_one_seed(world, config, seed, Run((keep or Path(folder)) / str(seed)), told))
    arms = {
        name: {metric: float(np.mean([each["arms"][name][metric] for each in details])) for metric in METRICS}
        for name in ARMS
    }
    report = {"figures": _figures(details), "seeds": list(config.seeds), "arms": arms, "details": details}
    checked: dict[str, Any] = finite(report)
    return checked


def _one_seed(world: BazaarWorld, config: StrategistConfig, seed: int, run: Run, told: Told) -> dict[str, Any]:
    logs = cached_logs(world, config.shoppers, config.days, seed, told)
    made = cached_fit(logs, replace(config.fit, seed=seed), told).shoppers
    if not find_directory(run.shoppers).is_dir():
        copy_directory(made, run.shoppers, "shoppers")
    fitted, guardrails = load_shoppers(run.shoppers, _CPU), Guardrails.load()
    items, rows = read_logs(logs).items, fitted.read_part("train")
    assert items is not None
    discounts = discount_of_tiers(rows, items, fitted.world("train").offers)
    train = replace(config.train, seed=seed)
    plain = replace(train.reward.plain, response="expected")
    reward = CopyReward(fitted, rows, items, plain, discounts=discounts, seed=seed)
    tuned = Stage(run, "sft").out
    if not find_directory(tuned).is_dir():
        lines = logged_lines(rows, items, SURFACE, list(reward.audiences.label(rows, items)))
        sft(run, config.model, lines, guardrails, replace(config.sft, seed=seed), True, _silent)
    told("a writer tuned on the log")
    own = Stage(run, "rwr").out
    if not find_directory(own).is_dir():
        given = draw_assignments(items, SURFACE, reward.labels, discounts, config.rwr.briefs, seed)
        rwr(run, str(tuned), given, reward, guardrails, replace(config.rwr, seed=seed), True, _silent)
    told("the same, having learned from its own lines")
    rounds = RoundsConfig(
        str(own), config.rounds, config.places, config.count, writing=replace(config.writing, seed=seed)
    )
    report = co_train(run, train, rounds, True, _told_of(told))
    told(f"round {report['best']} of {config.rounds} is best, as the judge has it")
    first = PageStrategy.load(run.path / "rounds" / "1" / "policy", _CPU)
    learned = AudienceWorld(read(fitted, fitted.world("train"), train.reward), reward.audiences)
    places = shown_places(
        learned, LikeliestPages(first), discounts, reward.labels, rules_of(train), config.followed, fresh(seed, 31)
    )
    chosen, _ = most_shown(places, config.places)
    asked = assignments_of(chosen, items, SURFACE, ())
    tuned_bank = fill_bank(
        Writer.load(str(tuned), _CPU), guardrails, asked, reward, count=config.count, temperature=1.0, seed=seed
    )
    told(f"the tuned writer's bank: {len(tuned_bank):,} lines")
    nothing = [Candidate(each.item_id, each.brief, "") for each in asked]  # which no rule lets through
    templates = build_bank(nothing, lambda *_: np.zeros((1, 0)), guardrails, "templates")
    banks = {"template copy": templates, "sft copy": tuned_bank, "cotrained": CopyBank.load(run.bank, guardrails)}
    pages = {name: LikeliestPages(first) for name in ARMS}
    pages["cotrained"] = LikeliestPages(PageStrategy.load(run.policy, _CPU))
    arms = {}
    for name in ARMS:
        bank, who = banks.get(name), reward.audiences
        where, strategy = in_gold(world, fitted, train.reward, who, discounts, pages[name], bank)
        totals = rollout(where, strategy, config.followed, config.horizon, _seeded(fresh(seed, 32)))
        arms[name] = metrics(totals, train.reward)
        told(f"{name}: reward {arms[name]['reward']:.2f}, CTR {arms[name]['ctr']:.4f}, D7 {arms[name]['d7']:.3f}")
    return {"seed": seed, "arms": arms, "rounds": report["rounds"], "best": report["best"]}


def in_gold(
    world: BazaarWorld,
    fitted: FittedShoppers,
    reward: RewardSpec,
    audiences: Audiences,
    discounts: tuple[float, ...],
    pages: LikeliestPages,
    bank: CopyBank | None,
) -> tuple[World, Proposer]:
    """Return the gold world, which reads what a bank says, and the strategy in it.

    Args:
        world: The gold world.
        fitted: The shoppers that pages were trained against.
        reward: What they were trained for.
        audiences: How the shop tells its shoppers apart.
        discounts: Share of the price that each tier of the offer takes off.
        pages: What decides.
        bank: Says the lines; None leaves them to the pages.
    """
    if bank is None:
        return read(fitted, world, reward), pages
    hearing = fitted.with_lines(bank.texts(SURFACE))
    assert hearing.lines is not None
    said = AudienceWorld(read(hearing, world.with_lines(hearing.lines.texts), reward), audiences)
    item_ids, labels = fitted.builder.catalog.item_ids, audiences.labels
    table = BankTable.of(bank, item_ids, labels, discounts, SURFACE, said.lines, _CPU)
    return said, Strategist(pages, table)


def _figures(details: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return the figures from what each seed found."""

    def of(name: str, metric: str) -> list[float]:
        return [each["arms"][name][metric] for each in details]

    found: dict[str, Figure] = {}
    units = {"reward": "reward a shopper", "ctr": "clicks an impression", "cvr": "purchases a click", "d7": "share"}
    for name in ARMS:
        for metric, unit in units.items():
            key = f"arms.{name.replace(' ', '_')}"
            found[key if metric == "reward" else f"{key}.{metric}"] = over_seeds(of(name, metric), unit)
    for other in ARMS[:-1]:
        gain = np.subtract(of("cotrained", "reward"), of(other, "reward")).tolist()
        key = other.removesuffix(" copy").replace(" ", "_")
        found[f"cotrained_minus_{key}.reward"] = over_seeds(gain, units["reward"])
    return found


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _silent(done: int, of: int, value: float) -> None:
    """Tell nothing."""


def _told_of(told: Told) -> Callable[[str, int, int, float | None], None]:
    """Return a callback that tells of every tenth of what is being done."""

    def step(what: str, done: int, of: int, value: float | None) -> None:
        if of and done * 10 // of > (done - 1) * 10 // of:
            told(f"{what}: {done:,} of {of:,}" + ("" if value is None else f", {value:.4f}"))

    return step
