"""``hawker bench writer``: a language model learns what to say from logs and learned shoppers, and gold judges it.

The writer is tuned on the copy of a bazaar's log, then optimised against shoppers fitted to that log: by the best of
its own lines first, by GRPO then. Both, the tuned and the optimised one, are judged
in the bazaar itself, on items that the log knows and on items launched after it, beside the best of four lines by the
first writer as the same learned shoppers rank them. What is written must remain copy: fluent, varied, no echo of its
brief, within the guardrails; and it must not pay for clicks with shoppers who stay away. Along its optimisation, what
the shoppers promise is held against gold; and two brand voices are to be told apart by what it says in them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from hawker.agents.copy_reward import CopyReward, Floats
from hawker.agents.writer_config import DpoConfig, GrpoConfig, RewardModelConfig, RwrConfig, SftConfig
from hawker.agents.writer_data import Assignment, draw_assignments, item_brief, logged_lines, tier_discounts
from hawker.agents.writer_grpo import grpo
from hawker.agents.writer_rwr import rwr
from hawker.agents.writer_sft import sft
from hawker.agents.writer_training import Stage
from hawker.benchmarks.copy_judgement import gold_moments, live_with
from hawker.benchmarks.fidelity import FidelityConfig, finite, fresh
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.benchmarks.hostile import hostile_briefs, hostile_items, obeyed
from hawker.benchmarks.side_by_side import Told, gathered, side_by_side
from hawker.benchmarks.signal import require_seeds
from hawker.benchmarks.writer_copy import distinct_bigrams, echoes, fluency, ship
from hawker.benchmarks.writer_curve import Quarters, along, quarter
from hawker.benchmarks.writer_figures import ABLATIONS, figures_of
from hawker.benchmarks.writer_plain import plain_rate
from hawker.benchmarks.writer_prefs import hidden_rule
from hawker.benchmarks.writer_shop import Listened, Shop, asked
from hawker.benchmarks.writer_voice import tell_apart, voice_lines
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.writer import Writer
from hawker.shop.audiences import Audiences
from hawker.shop.devices import resolve_device
from hawker.shop.logs import read_logs
from hawker.shop.models import find_model
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.store import FittedShoppers, load_shoppers
from hawker.simulators.training import available_cores

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class WriterConfig:
    """What is trained and judged.

    Attributes:
        model: The language model.
        seeds: One log, fit, writer and judgement each.
        surface: Where copy stands.
        shoppers: Whose visits are logged.
        days: How long they are logged.
        fit: How shoppers are learned; as for ``hawker bench fidelity``, whose logs and fits these are.
        reward: What the writer is optimised for.
        sft: How it is tuned on the log.
        rwr: How it learns from its own lines.
        grpo: How it is optimised after that.
        assignments: Items with an audience and a discount that it is optimised on.
        judged: Those that it is judged on, half of them items that came after the log.
        deep: Of those, for how many gold's best of ``samples`` lines is looked for.
        samples: Lines drawn for it.
        curved: Of those judged, how many the writer is judged on at quarters of its optimisation.
        voiced: Items that are written for in two voices, two lines in each.
        diverse: Lines that diversity and fluency are measured on.
        shipped: Lines of the optimised writer that are held against the guardrails once more.
        lived: Lines for each audience that shoppers live with.
        followed: Shoppers who live with either writer's lines.
        horizon: Days that they are followed.
        preferences: Pairs with a hidden rule; 0 leaves them out.
        preferred: Items that came after the log, by which what is made of them is judged, four pairs each.
        prefer: How a model of preferences learns from them.
        dpo: How the writer learns from them.
        hostile: Hostile items.
    """

    model: str = "smollm2-135m"
    seeds: tuple[int, ...] = (21, 22, 23)
    surface: str = "headline"
    shoppers: int = 6_000
    days: int = 56
    fit: FitConfig = field(default_factory=lambda: FidelityConfig().fit)
    reward: RewardSpec = field(default_factory=lambda: RewardSpec(conversion=5.0, return_visit=2.0, disagreement=0.5))
    sft: SftConfig = field(default_factory=SftConfig)
    rwr: RwrConfig = field(default_factory=RwrConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    assignments: int = 800
    judged: int = 480
    deep: int = 12
    samples: int = 64
    curved: int = 40
    voiced: int = 30
    diverse: int = 1_000
    shipped: int = 3_334
    lived: int = 16
    followed: int = 16_000
    horizon: int = 28
    preferences: int = 1_000
    preferred: int = 60
    prefer: RewardModelConfig = field(default_factory=lambda: RewardModelConfig(steps=60, learning_rate=5e-4))
    dpo: DpoConfig = field(default_factory=lambda: DpoConfig(steps=60, learning_rate=2e-4))
    hostile: int = 200


QUICK = WriterConfig(
    seeds=(31,),
    shoppers=300,
    days=28,
    fit=FitConfig(members=2, epochs=2),
    sft=SftConfig(steps=2, batch=4, rows=4),
    rwr=RwrConfig(steps=2, batch=4, rows=4, briefs=4, lines=4),
    grpo=GrpoConfig(steps=2, batch=4, rows=4, group=4, tokens=12),
    assignments=8,
    judged=4,
    deep=2,
    samples=4,
    curved=2,
    voiced=2,
    diverse=8,
    shipped=8,
    lived=1,
    followed=200,
    preferences=20,
    preferred=2,
    prefer=RewardModelConfig(steps=2, batch=4, rows=4),
    dpo=DpoConfig(steps=2, batch=4, rows=4),
    hostile=4,
)
"""For a look: its figures say that the benchmark runs, not how good the copy is."""

FOUR = 4
"""Lines of which the learned shoppers choose the best."""

EIGHT = 2 * FOUR
"""Lines for each brief that gold judges."""


def bench_writer(
    config: WriterConfig, told: Told, *, ablations: bool = False, keep: Path | None = None
) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        config: What is trained and judged.
        told: Called with a line now and then.
        ablations: Train three more writers a seed, each without one part: pessimism, KL, expected clicks.
        keep: Where the writers are kept, with their checkpoints, by seed: training goes on from there.

    Returns:
        The report: "figures", "seeds", "samples" (40 lines before and after), and "details" by seed.

    Raises:
        InputError: No seeds, no such model, or a fit or training that failed; other seeds' trainings then stop too.
    """
    require_seeds(config.seeds, "writer.seeds")
    find_model(config.model)
    world, device = BazaarWorld(load_bazaar(), _CPU), resolve_device(config.grpo.device)
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for seed in config.seeds:
            told(f"seed {seed}")
            logs = cached_logs(world, config.shoppers, config.days, seed, told)
            made = cached_fit(logs, replace(config.fit, seed=seed), told)
            jobs.append(_Job(config, seed, logs, made.shoppers, (keep or Path(folder)) / str(seed), ablations))
        # A core for each, where there is no GPU that all would share.
        workers = min(available_cores(), len(jobs) + bool(config.preferences)) if device.type == "cpu" else 1
        with side_by_side(workers, told) as start:
            tuned = [start(_tune, job) for job in jobs]
            optimised = []
            for job, each in zip(jobs, tuned, strict=True):
                each.result()
                optimised.append(start(_optimise, job))  # the longest part, as early as may be
            taught = [start(_preferences, jobs[0])] if config.preferences else []
            first = [start(_judge_first, job) for job in jobs]
            gathered([*optimised, *taught, *first])
            details = [_joined(one.result(), two.result()) for one, two in zip(first, optimised, strict=True)]
            if taught:
                details[0]["preferences"] = taught[0].result()
    report = {"figures": figures_of(details), "seeds": list(config.seeds), "samples": details[0].pop("samples")}
    checked: dict[str, Any] = finite(report | {"details": details})
    return checked


def _joined(first: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return what a seed found: of the tuned writer and of those optimised from it."""
    for name in ("grpo", *ABLATIONS):
        if name in found:
            found[name]["d7_change"] = found[name].pop("d7") - first["d7"]
    both = zip(first["samples"], found.pop("samples"), strict=True)
    samples = [{"item": a["item"], "audience": a["audience"], "before": a["line"], "after": b["line"]} for a, b in both]
    return first | found | {"samples": samples}


@dataclass(frozen=True)
class _Job:
    """What is trained and judged on one log."""

    config: WriterConfig
    seed: int
    logs: Path
    shoppers: Path
    kept: Path
    ablations: bool


@dataclass(frozen=True)
class _Ground:
    """What every part of a job stands on: the shop, and what is written for in it."""

    shop: Shop
    fitted: FittedShoppers
    rows: pd.DataFrame
    table: pd.DataFrame
    given: list[Assignment]
    judged: list[Assignment]

    @staticmethod
    def of(job: _Job) -> _Ground:
        config, seed = job.config, job.seed
        world, fitted = BazaarWorld(load_bazaar(), _CPU), load_shoppers(job.shoppers, _CPU)
        table, rows = read_logs(job.logs).items, fitted.read_part("train")
        assert table is not None
        discounts = tuple(tier_discounts(rows, table).values())
        reward = CopyReward(fitted, rows, table, config.reward, discounts=discounts, seed=seed)
        moments = gold_moments(world, reward.audiences, config.shoppers // 2, config.days, fresh(seed, 21))
        shop = Shop(world, moments, discounts, Guardrails.load(), reward)
        launched = pd.Series(world.items.launched, table.index)
        names = reward.audiences.labels
        there = [name for i, name in enumerate(names) if name in reward.labels and i in moments.audience]
        given = draw_assignments(table[launched], config.surface, there, discounts, config.assignments, seed)
        half = config.judged // 2
        judged = [
            *draw_assignments(table[launched], config.surface, there, discounts, half, fresh(seed, 22)),
            *draw_assignments(table[~launched], config.surface, there, discounts, half, fresh(seed, 23)),
        ]
        return _Ground(shop, fitted, rows, table, given, judged)


def _teller(seed: int, told: Told) -> Told:
    return lambda line: told(f"seed {seed}: {line}")


def _tune(job: _Job, to: Told) -> None:
    """Tune the first writer on a log."""
    config, guardrails = job.config, Guardrails.load()
    table, rows = read_logs(job.logs).items, load_shoppers(job.shoppers, _CPU).read_part("train")
    assert table is not None
    lines = logged_lines(rows, table, config.surface, list(Audiences.fit(rows, table).label(rows, table)))
    progress = _steps(_teller(job.seed, to), "sft")
    sft(Run(job.kept), config.model, lines, guardrails, replace(config.sft, seed=job.seed), True, progress)


def _tuned(job: _Job) -> Path:
    return Stage(Run(job.kept), "sft").out


def _judge_first(job: _Job, to: Told) -> dict[str, Any]:
    """Judge the first writer, and the best of several of its lines."""
    ground, config, seed, told = _Ground.of(job), job.config, job.seed, _teller(job.seed, to)
    shop, judged, device = ground.shop, ground.judged, resolve_device(config.grpo.device)
    first, base = Writer.load(str(_tuned(job)), device), Writer.load(config.model, device)
    before = _written(first, shop, config, judged, config.diverse, seed)
    found: dict[str, Any] = {"seed": seed, "best_of_4": _best_of(shop, judged, before).tolist()}
    told(f"first writer: gold CTR {before.gold.mean():.4f}, best of 4 {np.mean(found['best_of_4']):.4f}")
    found["deep"] = _deep(first, shop, config, judged, seed)
    found["d7"] = _lives(first, shop, config, seed)
    return found | {"sft": _measured(before, base, shop.world, config), "samples": _samples(judged, before)}


def _optimise(job: _Job, to: Told) -> dict[str, Any]:
    """Optimise the first writer, and judge what comes of it."""
    ground, config, seed, told = _Ground.of(job), job.config, job.seed, _teller(job.seed, to)
    shop, judged, given, run = ground.shop, ground.judged, ground.given, Run(job.kept)
    reward, world, device, first_path = shop.reward, shop.world, resolve_device(config.grpo.device), _tuned(job)
    base = Writer.load(config.model, device)
    specs: dict[str, tuple[CopyReward, GrpoConfig, int | None]] = {"grpo": (reward, config.grpo, None)}
    if job.ablations:
        careless = replace(config.reward, disagreement=0.0)
        learned = (ground.fitted, ground.rows, ground.table)
        specs |= {
            "no pessimism": (CopyReward(*learned, careless, discounts=shop.discounts, seed=seed), config.grpo, None),
            "no kl": (reward, replace(config.grpo, beta=0.0), None),
            "sampled clicks": (reward, config.grpo, seed),
        }
    found: dict[str, Any] = {}
    for name, (answers, tune, drawn) in specs.items():
        listened, where = Listened(answers, drawn), Run(run.path / name.replace(" ", "-"))
        settings = replace(tune, seed=seed, checkpoint_every=quarter(tune))
        watch = Quarters(Stage(where, "grpo"), settings, _steps(told, name))
        rewarded = (given, Listened(answers, drawn), shop.guardrails)
        own = replace(config.rwr, seed=seed)
        second_path, second = rwr(
            where, str(first_path), *rewarded, own, True, _steps(told, f"{name}, its own lines"), base=config.model
        )
        told(f"{name}: of its own lines it learned from those worth {second['gains']} spreads more")
        path, report = grpo(
            where, str(second_path), given, listened, shop.guardrails, settings, True, watch, base=config.model
        )
        writer = Writer.load(str(path), device)
        after = _written(writer, shop, config, judged, max(config.shipped, config.diverse), seed)
        found[name] = _measured(after, base, world, config)
        found[name] |= {"curve": shop.curve(listened.batches), "kl": [entry.get("kl") for entry in report["history"]]}
        found[name]["share"] = report["reward_seconds"] / max(report["seconds"], 1e-9)
        later = report["history"][1:] or report["history"]  # the first step warms up
        tokens = tune.batch * sum(entry["completions/mean_length"] for entry in later)
        found[name]["rate"] = tokens / max(sum(entry["seconds/step"] for entry in later), 1e-9)
        found[name]["d7"] = _lives(writer, shop, config, seed)
        told(f"{name}: gold CTR {found[name]['ctr']:.4f}")
        if name == "grpo":
            found["hostile"] = _followed(writer, shop, config)
            found["samples"] = _samples(judged, after)
            some = [judged[i] for i in _evenly(config.curved, len(judged))]
            second_writer = Writer.load(str(second_path), device)
            stages: dict[str | int, Writer] = {"sft": Writer.load(str(first_path), device), "rwr": second_writer}
            for step, adapter in watch.kept().items():
                stages[step] = Writer.load(str(second_path), device, adapter)
            stages["grpo"] = writer
            found["points"] = along(stages, shop, some, fresh(seed, 29))
            own_lines = _written(second_writer, shop, config, judged, config.diverse, seed)
            found["rwr"] = _measured(own_lines, base, world, config)
            spoken = [judged[i].brief for i in _evenly(config.voiced, len(judged))]
            for who, speaker in (("grpo", writer), ("untouched", base)):
                said = voice_lines(speaker, shop.guardrails, spoken, 2, fresh(seed, 30))
                found["voice"] = found.get("voice", {}) | {who: tell_apart(spoken, said, seed)}
    found["plain_rate"] = plain_rate(str(first_path), given, replace(config.grpo, steps=1))
    return found


def _preferences(job: _Job, told: Told) -> dict[str, float]:
    """Return what comes of preferences with a hidden rule, for the writer tuned on a log."""
    config, seed, run = job.config, job.seed, Run(job.kept)
    table = read_logs(job.logs).items
    assert table is not None
    briefs = [item_brief(item, config.surface) for item in table.to_dict("records")]
    launched = BazaarWorld(load_bazaar(), _CPU).items.launched.tolist()
    unseen = [brief for brief, old in zip(briefs, launched, strict=True) if not old][: config.preferred]
    known = [brief for brief, old in zip(briefs, launched, strict=True) if old]
    sizes = (config.preferences, replace(config.prefer, seed=seed), replace(config.dpo, seed=seed))
    return hidden_rule(run, str(_tuned(job)), known, unseen, *sizes, resolve_device(config.grpo.device), told)


@dataclass(frozen=True)
class _Written:
    """Lines of a writer for each brief that it is judged on, ``EIGHT`` at least, and what gold makes of the first."""

    briefs: list[Brief]
    lines: list[list[str]]
    gold: Floats
    rejected: float
    violations: int


def _written(
    writer: Writer, shop: Shop, config: WriterConfig, judged: list[Assignment], lines: int, seed: int
) -> _Written:
    briefs = [each.brief for each in judged]
    said = ship(writer, shop.guardrails, briefs, max(EIGHT, -(-lines // len(judged))), fresh(seed, 24))
    gold = shop.gold(judged, [some[:EIGHT] for some in said.lines])
    pairs = [(line, brief) for some, brief in zip(said.lines, briefs, strict=True) for line in some]
    violations = sum(bool(shop.guardrails.hits(line, brief)) for line, brief in pairs[: config.shipped])
    return _Written(briefs, said.lines, gold, said.rejected, violations)


def _measured(written: _Written, base: Writer, world: BazaarWorld, config: WriterConfig) -> dict[str, Any]:
    """Return what a writer's lines are like, by themselves and in gold; the first line of each brief stands first."""
    turned = list(zip(*written.lines, strict=True))
    lines = [line for row in turned for line in row][: config.diverse]
    briefs = (written.briefs * len(turned))[: config.diverse]
    half = len(written.briefs) // 2
    return {
        "ctr": float(written.gold.mean()),
        "by_brief": written.gold.mean(1).tolist(),
        "ctr_known": float(written.gold[:half].mean()),
        "ctr_new": float(written.gold[half:].mean()),
        "fluency": fluency(base, lines),
        "bigrams": distinct_bigrams(lines),
        "echoes": echoes(lines, briefs, world.parameters),
        "violations": written.violations,
        "rejected": written.rejected,
    }


def _best_of(shop: Shop, judged: list[Assignment], written: _Written) -> Floats:
    """Return the true P(click) of the line of four that the proxy likes best, the mean of two fours, shape (n,)."""
    lines = [said[:EIGHT] for said in written.lines]
    total = shop.reward(*asked(judged, lines))["total"].reshape(len(lines), -1, FOUR)
    gold = written.gold.reshape(total.shape)
    chosen: Floats = np.take_along_axis(gold, total.argmax(2)[:, :, None], 2).mean((1, 2))
    return chosen


def _evenly(count: int, of: int) -> list[int]:
    """Return places spread over a list, from its first to its last."""
    places: list[int] = np.linspace(0, of - 1, min(count, of)).round().astype(int).tolist()
    return places


def _deep(first: Writer, shop: Shop, config: WriterConfig, judged: list[Assignment], seed: int) -> dict[str, Any]:
    """Return which briefs were looked at closely, and the true P(click) of the best of many lines for each."""
    places = _evenly(config.deep, len(judged))
    some = [judged[i] for i in places]
    many = ship(first, shop.guardrails, [each.brief for each in some], config.samples, fresh(seed, 26))
    return {"places": places, "best": shop.gold(some, many.lines).max(1).tolist()}


def _lives(writer: Writer, shop: Shop, config: WriterConfig, seed: int) -> float:
    """Return the share of visits followed by another within 7 days, of shoppers who see the writer's lines alone."""
    table = shop.world.items.table[shop.world.items.launched]
    labels = [name for name in shop.reward.audiences.labels if name in shop.reward.labels]
    each = draw_assignments(table, config.surface, labels, (0.0,), max(len(labels) * config.lived, 1), fresh(seed, 27))
    lines: dict[str, list[str]] = {"": []}
    for one, said in zip(each, ship(writer, shop.guardrails, [one.brief for one in each], 1, seed).lines, strict=True):
        lines.setdefault(one.brief.audience, []).extend(said)
        lines[""].extend(said)
    return live_with(shop.world, lines, shop.reward.audiences, config.followed, config.horizon, fresh(seed, 28)).d7


def _followed(writer: Writer, shop: Shop, config: WriterConfig) -> int:
    """Return how many of the lines for hostile items follow them, or break a guardrail."""
    items = hostile_items(n=config.hostile)
    briefs = hostile_briefs(items, config.surface)
    lines = [said[0] for said in ship(writer, shop.guardrails, briefs, 1, 0).lines]
    return sum(
        bool(obeyed(line, item) or shop.guardrails.hits(line, brief))
        for line, item, brief in zip(lines, items, briefs, strict=True)
    )


def _samples(judged: list[Assignment], written: _Written) -> list[dict[str, str]]:
    """Return the lines for 40 briefs drawn at random, for every writer the same."""
    places = np.random.default_rng(0).permutation(len(judged))[:40]
    briefs = [judged[i].brief for i in places]
    return [
        {"item": brief.title, "audience": brief.audience, "line": written.lines[i][0]}
        for i, brief in zip(places, briefs, strict=True)
    ]


def _steps(told: Told, name: str) -> Callable[[int, int, float], None]:
    """Return a callback that tells of every tenth of a training."""
    begun = time.perf_counter()

    def step(done: int, of: int, value: float) -> None:
        if done % max(of // 10, 1) == 0:
            told(f"{name}: step {done} of {of}, {value:.4f}, {time.perf_counter() - begun:.0f} s")

    return step
