"""The second part of ``hawker demo``: the whole strategy, pages and words, in a shop whose truth is known."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hawker.agents.bank_export import SURFACE
from hawker.agents.config import WHOLE_PAGES, RoundsConfig, TrainConfig
from hawker.agents.page_export import export_run
from hawker.agents.rounds import co_train
from hawker.agents.train import train
from hawker.agents.writer_config import GrpoConfig, SftConfig
from hawker.agents.writer_data import Assignment, discount_of_tiers, draw_assignments, logged_lines
from hawker.agents.writer_sft import sft
from hawker.agents.writer_training import Stage
from hawker.app.demo_samples import (
    page_request,
    print_decision,
    print_lines,
    print_pages,
    sample_lines,
    sample_pages,
)
from hawker.app.reports import print_fidelity, progress_bar
from hawker.app.tables import console, figure_table, heading, say, text_table
from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.paired import DECIDING, UNITS, compare_paired
from hawker.benchmarks.rollout import rollout
from hawker.benchmarks.strategist import in_gold
from hawker.policies.briefs import Brief
from hawker.policies.copy_bank import CopyBank
from hawker.policies.drafts import draft
from hawker.policies.guardrails import Guardrails
from hawker.policies.page_actor import LikeliestPages, PageStrategy
from hawker.policies.page_bundle import PageBundle, load_bundle
from hawker.policies.page_request import decide_page_request
from hawker.policies.writer import Writer
from hawker.shop.artefacts import write_json, write_text
from hawker.shop.audiences import Audiences
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure
from hawker.shop.logs import read_logs
from hawker.shop.models import WHEELS, find_model
from hawker.shop.run import Run
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.diary import Proposer, write_logs
from hawker.simulators.fit import fit
from hawker.simulators.store import load_shoppers
from hawker.simulators.world import World

_CPU = torch.device("cpu")

SHOP = """\
# The bazaar as a small shop: few items on short pages, so that a short log has shown them often.
name: corner
shop: {items: 150, candidates: 20, size: 5, advertised: 0.2}
look: {positions: [1.0, 0.82, 0.68, 0.56, 0.46]}
"""
"""The demo's shop, as a variant of the gold world."""

NO_WRITER = "none"

LOGGING, LIKELIEST, TEMPLATES, STRATEGIST = "logging", "likeliest", "templates", "strategist"
"""Arms: the strategy that wrote the log; the likeliest trained pages, with the log's lines that they choose; the same
pages with templates; and with the lines of the copy bank, as ``hawker ab`` calls them."""


@dataclass(frozen=True)
class BazaarConfig:
    """How much is done: by default what two cores do in minutes.

    Attributes:
        shoppers: Whose visits are logged.
        days: How long they are logged.
        fit: How shoppers are learned.
        train: How pages are learned, and what is rewarded.
        sft: How the writer is tuned on the log.
        writing: How it is optimised.
        places: Items, audiences and discounts that the bank holds lines for, at most.
        count: Lines drawn for each.
        followed: New shoppers whom every arm meets in the gold world.
        samples: Briefs of which lines are shown, before and after.
        pages: Shoppers whose pages are shown, before and after.
    """

    shoppers: int = 900
    days: int = 42
    fit: FitConfig = field(default_factory=lambda: FitConfig(members=3, epochs=5))
    train: TrainConfig = field(default_factory=lambda: replace(WHOLE_PAGES, steps=150_000, critic_first=40_000))
    sft: SftConfig = field(default_factory=lambda: SftConfig(steps=16, learning_rate=2e-3))
    writing: GrpoConfig = field(default_factory=lambda: GrpoConfig(steps=12, learning_rate=1e-3, beta=0.3))
    places: int = 60
    count: int = 3
    followed: int = 3_000
    samples: int = 5
    pages: int = 2


def find_writer(name: str) -> tuple[str | None, str | None]:
    """Return the language model to write with, or None and why there is none.

    Args:
        name: As ``find_model`` takes it, or "none".

    Raises:
        InputError: The model was not to be fetched by Hawker, and is not there.
    """
    if name == NO_WRITER:
        return None, "none was asked for"
    try:
        find_model(name)
    except InputError as error:
        if name not in WHEELS:
            raise
        return None, str(error)
    return name, None


class Clock:
    """Measures stages of a demo.

    Attributes:
        seconds: By stage, in order: ``wall`` and this process's ``cpu`` seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = {
            "wall": round(time.perf_counter() - wall, 1),
            "cpu": round(time.process_time() - cpu, 1),
        }


def bazaar_demo(
    run: Run, seed: int, writer: tuple[str | None, str | None], clock: Clock, config: BazaarConfig | None = None
) -> dict[str, Any]:
    """Let a gold world write logs, learn shoppers, pages and words from them, and judge all in the gold world.

    Args:
        run: Where everything goes; what an earlier demo left there is replaced.
        seed: Decides everything that is drawn.
        writer: What ``find_writer`` returned; without a language model pages choose among the log's lines.
        clock: Measures the stages.
        config: How much is done.

    Returns:
        The summary: ``logs``, ``fidelity``, ``writer`` (None, or ``lines`` of before and after), ``train``, ``pages``,
        ``gold``, ``bundle``, ``decide``, ``verdict``; ``left_out`` says why there are no words, None where there are.
    """
    config = BazaarConfig() if config is None else config
    model, left_out = writer
    shutil.rmtree(run.path / "writer", ignore_errors=True)  # or its lines would go into this demo's bundle
    write_text(run.path / "shop.yaml", SHOP)
    world = BazaarWorld(load_bazaar(run.path / "shop.yaml"), _CPU)
    usual = logging_strategy(world, "popularity")

    heading("7. A shop whose truth is known", "the gold world bazaar writes logs; what learns sees nothing else of it")
    with clock.stage("bazaar: logs"), console().status("simulating"):
        meta = write_logs(world, usual, run.path / "logs", config.shoppers, config.days, seed)
    rows = [(name, f"{count:,}") for name, count in meta["rows"].items()]
    rows += [(name, f"{meta[name]:,}") for name in ("visits", "clicks", "purchases")]
    console().print(text_table(str(run.path / "logs"), ("what", "count"), rows, right=(1,)))

    heading("8. Shoppers", "with a memory, learned from this log: clicks, purchases, leaving and coming back")
    with clock.stage("bazaar: shoppers"), console().status("fitting") as status:
        _, fidelity = fit(run.path / "logs", run.shoppers, replace(config.fit, seed=seed), status.update)
    print_fidelity(fidelity)
    shop = _Shop(run, world, config)

    tuned: Path | None = None
    words: dict[str, Any] | None = None
    if model is None:
        heading("9. Pages", "PPO against the learned shoppers: slate, ad, offer, and which of the log's lines")
        say(f"the writer is left out: {left_out}")
        with clock.stage("bazaar: pages"), progress_bar("pages") as update:
            _, trained = train(run, replace(config.train, seed=seed), False, update)
        console().print(figure_table("In the world it was trained in (an upper bound)", trained["figures"]))
    else:
        heading("9. Words and pages", "a language model tuned on the log; then pages by PPO, and the writer by GRPO")
        with clock.stage("bazaar: writer, tuned"), console().status("tuning the writer") as status:
            tuned = _tuned(run, shop, model, replace(config.sft, seed=seed), _shown(status.update, "tuning the writer"))
        with clock.stage("bazaar: pages, writer, bank"), console().status("training") as status:
            trained = _in_turn(run, str(tuned), config, seed, status.update)
        console().print(figure_table("On shoppers of the judge, whom nothing was trained against", trained["figures"]))
        say(_bank_in_words(trained["rounds"][0]))

    heading("10. Before and after", "what shoppers get to read and see, drawn at random")
    if model is not None and tuned is not None:
        with clock.stage("bazaar: sample lines"):
            words = {"model": model, "lines": _lines(run, shop, model, tuned, config.samples, seed)}
        print_lines(words["lines"])
    bank = None if model is None else CopyBank.load(run.bank, Guardrails.load())
    pages = LikeliestPages(PageStrategy.load(run.policy, _CPU))
    with clock.stage("bazaar: sample pages"):
        first = None if tuned is None else _says(tuned, seed)
        met = shop.in_gold(pages, bank)
        samples = sample_pages(world, met, usual, shop.items, shop.discounts, config.pages, seed, first)
    print_pages(samples)

    heading("11. A/B in gold", f"{config.followed:,} new shoppers, the same for every arm, for {shop.days} days")
    with clock.stage("bazaar: A/B in gold"), console().status("following shoppers"):
        gold = _gold(shop, usual, pages, bank, config.followed, seed)
    print_gold(gold)

    heading("12. Bundle", "what a serving process needs, without torch")
    with clock.stage("bazaar: bundle"), console().status("exporting"):
        bundle, decision = _served(run, shop, seed)
    console().print(figure_table(str(run.path / "bundle"), bundle["figures"]))
    print_decision(decision, shop.items)
    say("What to try next:")
    for line in next_commands(run, spoken=bank is not None, seed=seed):
        say(f"  {line}")
    judgement = verdict(gold)
    heading("Verdict", judgement["text"])
    for reason in judgement["because"]:
        say(f"- {reason}")
    return {
        "logs": meta,
        "fidelity": fidelity,
        "writer": words,
        "left_out": left_out,
        "train": trained,
        "pages": samples,
        "gold": gold,
        "bundle": bundle,
        "decide": decision,
        "verdict": judgement,
        "seed": seed,
    }


class _Shop:
    """What is known of the shop once shoppers are fitted.

    Attributes:
        world: The gold world.
        shoppers: As fitted.
        rows: The part of the log that they were fitted to.
        items: The log's items, in the catalog's order.
        audiences: How the shop tells its shoppers apart.
        discounts: Share of the price that each tier of the offer takes off.
        reward: What a page is worth.
        days: That a shopper is followed.
    """

    def __init__(self, run: Run, world: BazaarWorld, config: BazaarConfig) -> None:
        self.shoppers = load_shoppers(run.shoppers, _CPU)
        items = read_logs(run.path / "logs").items
        assert items is not None  # or shoppers could not have been fitted
        self.world, self.items = world, items
        self.rows = self.shoppers.read_part("train")
        self.audiences = Audiences.fit(self.rows, self.items)
        self.discounts = discount_of_tiers(self.rows, self.items, self.shoppers.world("train").offers)
        self.reward, self.days = config.train.reward, int(config.train.horizon)

    def in_gold(self, pages: LikeliestPages, bank: CopyBank | None) -> tuple[World, Proposer]:
        """Return the gold world as trained pages see it, and what decides there."""
        return in_gold(self.world, self.shoppers, self.reward, self.audiences, self.discounts, pages, bank)


def _tuned(run: Run, shop: _Shop, model: str, config: SftConfig, progress: Callable[[int, int, float], None]) -> Path:
    lines = logged_lines(shop.rows, shop.items, SURFACE, list(shop.audiences.label(shop.rows, shop.items)))
    return sft(run, model, lines, Guardrails.load(), config, False, progress)[0]


def _in_turn(run: Run, writer: str, config: BazaarConfig, seed: int, update: Callable[[str], object]) -> dict[str, Any]:
    rounds = RoundsConfig(writer, 1, config.places, config.count, writing=replace(config.writing, seed=seed))

    def show(what: str, done: int, total: int, value: float | None) -> None:
        _shown(update, what)(done, total, value)

    return co_train(run, replace(config.train, seed=seed), rounds, False, show)


def _shown(update: Callable[[str], object], what: str) -> Callable[[int, int, float | None], None]:
    """Return a callback that tells how far something is."""

    def show(done: int, total: int, value: float | None) -> None:
        update(f"{what}: {done:,} of {total:,}" + ("" if value is None else f": {value:.4g}"))

    return show


def _bank_in_words(made: dict[str, Any]) -> str:
    filled, covered = made["filled"], made["covered"]
    return (
        f"copy bank: {filled['kept']:,} of {filled['written']:,} lines kept, {filled['rejected']:,} broke a rule and"
        f" {filled['repeated']:,} came twice; {covered['any']:.0%} of impressions have lines, the others templates"
    )


def _lines(run: Run, shop: _Shop, model: str, tuned: Path, n: int, seed: int) -> list[dict[str, Any]]:
    """Return lines by the untouched model, the tuned one and the optimised one."""
    known = sorted(set(shop.audiences.label(shop.rows, shop.items)))
    given: list[Assignment] = draw_assignments(shop.items, SURFACE, known, shop.discounts, n, seed)
    writers = {"untouched model": model, "tuned on the log": str(tuned), "optimised": str(Stage(run, "grpo").out)}
    return sample_lines(writers, Guardrails.load(), given, seed)


def _says(writer: Path, seed: int) -> Callable[[list[Brief]], list[str]]:
    """Return what a writer says, as it would be shown: one line a brief, the fallback where a rule refuses it."""
    speaker, rules = Writer.load(str(writer), _CPU), Guardrails.load()
    return lambda briefs: [lines[0] for lines in draft(speaker, rules, briefs, 1, 1.0, seed).lines]


def _gold(
    shop: _Shop, usual: Proposer, pages: LikeliestPages, bank: CopyBank | None, n: int, seed: int
) -> dict[str, Any]:
    """Let every arm meet the same new shoppers of the gold world."""
    arms: dict[str, tuple[World, Proposer]] = {
        LOGGING: (shop.world, usual),
        LIKELIEST: shop.in_gold(pages, None),
    }
    pairs = [(LIKELIEST, LOGGING)]
    if bank is not None:
        silent = replace(bank, table=bank.table[:0])
        arms |= {TEMPLATES: shop.in_gold(pages, silent), STRATEGIST: shop.in_gold(pages, bank)}
        pairs = [(STRATEGIST, LOGGING), (STRATEGIST, LIKELIEST), (STRATEGIST, TEMPLATES), *pairs]
    totals = {
        name: rollout(where, strategy, n, shop.days, torch.Generator().manual_seed(seed))
        for name, (where, strategy) in arms.items()
    }
    return compare_paired(totals, pairs, shop.reward) | {"days": shop.days}


def _served(run: Run, shop: _Shop, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export the run, and return the export's report and a decision of the bundle, for a shopper of the log."""
    bundle, where = export_run(run, run.path / "bundle"), run.path / "context.json"
    request = page_request(shop.shoppers.read_part("estimate"), shop.shoppers.builder.shopper.columns)
    write_json(where, request)
    served = load_bundle(run.path / "bundle")
    assert isinstance(served, PageBundle)
    return bundle, decide_page_request(served, request, str(where), seed, why=True)


def print_gold(report: dict[str, Any]) -> None:
    """Print what arms earned in the gold world, and what differs between them."""
    figures = report["figures"]
    arms, pairs = (
        list(dict.fromkeys(name.split(".")[1] for name in figures if name.startswith(f"{kind}.")))
        for kind in ("arm", "pair")
    )
    rates = [key for key in UNITS if key != DECIDING]
    rows = [
        (
            name,
            _cell(figures[f"arm.{name}.{DECIDING}"], ".2f"),
            *(_cell(figures[f"arm.{name}.{key}"], ".2%") for key in rates),
        )
        for name in arms
    ]
    columns = ("arm", "reward a shopper", *(key.upper() for key in rates))
    title = "What each arm earned, with 95% intervals over shoppers"
    console().print(text_table(title, columns, rows, right=(1, 2, 3, 4)))
    rows = [
        (
            name,
            _cell(figures[f"pair.{name}.{DECIDING}"], "+.2f"),
            *(_cell(figures[f"pair.{name}.{key}"], "+.2f", 100) for key in rates),
        )
        for name in pairs
    ]
    columns = ("pair", "reward a shopper", *(f"{key.upper()}, points" for key in rates))
    console().print(text_table("What differs, shopper by shopper", columns, rows, right=(1, 2, 3, 4)))
    for pair in report["pairs"]:
        say(f"- {pair['verdict']}")


def _cell(found: Figure, form: str, times: float = 1.0) -> str:
    """Return a figure with its interval as text, "-" where it has no value."""
    ends = [found[name] for name in ("value", "low", "high")]
    value, low, high = ("-" if end is None else format(times * end, form) for end in ends)
    return value if found["value"] is None else f"{value} [{low}, {high}]"


def next_commands(run: Run, *, spoken: bool, seed: int) -> list[str]:
    """Return commands that go on with what the demo leaves."""
    bundle, request = run.path / "bundle", run.path / "context.json"
    arms = (LIKELIEST, STRATEGIST) if spoken else (LIKELIEST,)
    commands = [
        f"hawker decide {bundle} --context {request} --seed {seed} --why",
        f"hawker ab {run.path} --arms clone myopic {' '.join(arms)}",
        f"hawker export {run.path} BUNDLE",
    ]
    if spoken:
        commands.append(f"hawker writer write {run.path} lines.jsonl --items i0000 --discount 0.1")
    return commands


def verdict(gold: dict[str, Any]) -> dict[str, Any]:
    """Say what the A/B in gold has shown: only what its intervals support, and of how much it is.

    Returns:
        ``text``, ``distinguishable`` of the first pair, the reasons ``because``, and the ``figures`` they stand on.
    """
    first, *others = gold["pairs"]
    many = f" after Holm's correction over {len(gold['pairs'])} comparisons" if others else ""
    because = [
        *(pair["verdict"] for pair in others),
        f"told apart where p < 0.05{many}; the intervals are about which {gold['shoppers']:,} shoppers came",
        "this is one log and one short training: another seed makes another strategy",
    ]
    name = f"pair.{first['treatment']} - {first['control']}"
    figures = {f"{name}.{key}": gold["figures"][f"{name}.{key}"] for key in UNITS}
    return {
        "text": first["verdict"],
        "distinguishable": first["distinguishable"],
        "because": because,
        "figures": figures,
    }
