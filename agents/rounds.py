"""``hawker train --rounds``: pages and the words on them, learned in turn.

Each round trains pages by PPO, where the bank of the round before says the lines (in the first round the strategy
chooses among the log's own); optimises the writer for the places that these pages show; and fills a copy bank for those
that they show most. A judge, who has trained nothing, then says what the pages earn with the bank and without it. The
round that it finds best is kept.

Every step leaves its result in RUN/rounds/NUMBER and begins with what the steps before have left there, on disk: so a
run that was broken off goes on where it was, and ends as an unbroken one.
"""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hawker.agents.bank import fill_bank
from hawker.agents.bank_export import SURFACE
from hawker.agents.config import RoundsConfig, TrainConfig
from hawker.agents.copy_reward import CopyReward
from hawker.agents.page_world import mean_figure, page_figures, parts_of, read, remember, rules_of
from hawker.agents.shown import assignments_of, drawn_places, most_shown, shown_places
from hawker.agents.spoken_world import SpokenWorld
from hawker.agents.train import Course, check_training, learn, whole_pages
from hawker.agents.writer_config import check
from hawker.agents.writer_data import discount_of_tiers
from hawker.agents.writer_grpo import grpo
from hawker.agents.writer_prefs import PreferenceModel
from hawker.agents.writer_training import Stage
from hawker.envs.follow import Followed, follow
from hawker.envs.sb3 import StorefrontVecEnv
from hawker.policies.baselines import RandomStrategy
from hawker.policies.copy_bank import CopyBank
from hawker.policies.guardrails import Guardrails
from hawker.policies.page_actor import LikeliestPages, PageStrategy
from hawker.policies.protocol import Strategy
from hawker.policies.strategist import BankTable, Strategist
from hawker.policies.writer import Writer
from hawker.shop.artefacts import CHECKSUMS, copy_directory, find_directory, read_json, sha256, write_json
from hawker.shop.config import to_dict
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.logs import read_logs
from hawker.shop.models import find_model, model_digest
from hawker.shop.run import Run
from hawker.simulators.audience_world import AudienceWorld
from hawker.simulators.store import FittedShoppers, Role, load_shoppers
from hawker.simulators.world import World

PLAN, REPORT = "plan.json", "report.json"

SHOWN_SHOPPERS = 2_000
"""Shoppers who are followed to see what pages show."""

JUDGED_SHOPPERS = 8_000
"""Shoppers of the judge who meet the pages of a round."""

Progress = Callable[[str, int, int, float | None], None]
"""Called with what is being done, steps so far, steps in all, and the reward of pages or lines where there is one."""


def co_train(run: Run, config: TrainConfig, rounds: RoundsConfig, resume: bool, progress: Progress) -> dict[str, Any]:
    """Train pages and the writer in turn, and keep the best round as RUN/policy, RUN/writer/grpo and RUN/writer/bank.

    Args:
        run: Holds fitted shoppers, of a log with copy, who have a memory; gets ``rounds``.
        config: How pages are trained in each round, and what is rewarded.
        rounds: How often, with which writer.
        resume: Go on from what there is of ``rounds``, more rounds than are asked for included; otherwise it is made
            anew.
        progress: Called now and then.

    Returns:
        The report (``rounds/report.json``): ``figures`` by round, the ``best`` round's number, and ``rounds``, each
        round's own report.

    Raises:
        InputError: No shoppers, or shoppers who cannot be written for; no such model; a bad config; rounds that were
            begun in another way.
    """
    check_training(config)
    check(rounds.writing)
    home = run.path / "rounds"
    shop = _Shop(run, config, rounds)
    plan = shop.plan()
    if not resume:
        shutil.rmtree(home, ignore_errors=True)
    if (home / PLAN).is_file():
        _require_same(read_json(home / PLAN), plan, home)
    else:
        write_json(home / PLAN, plan)
    reports: list[dict[str, Any]] = []
    finished = len(list(itertools.takewhile(lambda i: (home / str(i) / REPORT).is_file(), itertools.count(1))))
    for number in range(1, max(rounds.rounds, finished) + 1):
        reports.append(shop.round(number, progress))
        best = max(range(number), key=lambda i: (float(reports[i]["figures"][DECIDING]["value"]), -i)) + 1
        _keep(run, Run(home / str(best)))
    figures = {
        f"round {i}.{name}": value for i, each in enumerate(reports, 1) for name, value in each["figures"].items()
    }
    report = {
        "figures": figures,
        "best": best,
        "judged_by": "shoppers whom nothing was trained against; the best of several rounds by them is flattered a bit",
        "seed": config.seed,
        "rounds": reports,
    }
    write_json(home / REPORT, report)
    return report


DECIDING = "reward_per_shopper.with_bank"
"""The figure of the judge that decides which round is best."""


class _Shop:
    """What all rounds share.

    Attributes:
        shoppers: As fitted.
    """

    def __init__(self, run: Run, config: TrainConfig, rounds: RoundsConfig) -> None:
        device = resolve_device(config.device)
        self._run, self._config, self._rounds, self._device = run, config, rounds, device
        self._writing = replace(rounds.writing, reward=config.reward)
        self.shoppers = load_shoppers(run.shoppers, device)
        if rounds.writing.surface != SURFACE:
            what, got = "a bank holds lines for another place", rounds.writing.surface
            raise InputError(what, where="writing.surface", got=got, expected=SURFACE)
        if find_model(rounds.writer).resolve() == Stage(run, "grpo").out.resolve():
            what, remedy = "the best round's writer would take its place", "begin with a copy of it, or with another"
            raise InputError(what, where="train.writer", got=rounds.writer, remedy=remedy)
        if not remember(self.shoppers) or self.shoppers.lines is None:
            raise InputError(
                "nothing to write for: pages get lines where shoppers come back and their log shows copy",
                where=run.shoppers,
                remedy="train pages alone, without --writer",
            )
        self._parts = replace(parts_of(self.shoppers, config.reward), copy=False)
        self._rules, self._guardrails = rules_of(config), Guardrails.load()
        impressions, items = self.shoppers.read_part("train"), read_logs(self.shoppers.logs).items
        assert items is not None  # or shoppers could not have been fitted
        self._items = items
        self._discounts = discount_of_tiers(impressions, items, self.shoppers.world("train").offers)
        self._reward = CopyReward(
            self.shoppers, impressions, items, config.reward, discounts=self._discounts, seed=rounds.writing.seed
        )
        self._expected = copy.copy(self._reward)  # of the bank's lines, which is cautious by itself
        self._expected.spec = replace(config.reward.plain, response="expected")

    def plan(self) -> dict[str, Any]:
        """Return what rounds must agree on to be gone on with: all but how many there are."""
        free = ("rounds", "writer", "writing")
        rounds = {name: value for name, value in to_dict(self._rounds).items() if name not in free}
        return {
            "training": {name: value for name, value in to_dict(self._config).items() if name != "checkpoint_every"},
            "writing": {name: value for name, value in to_dict(self._writing).items() if name != "checkpoint_every"},
            "rounds": rounds,
            "writer": model_digest(find_model(self._rounds.writer)),
            "shoppers": self.shoppers.digest,
            "guardrails": self._guardrails.digest,
        }

    def round(self, number: int, progress: Progress) -> dict[str, Any]:
        """Return the report of a round, after making what it lacks."""
        here, before = self._place(number), self._place(number - 1) if number > 1 else None
        if (here.path / REPORT).is_file():
            report: dict[str, Any] = read_json(here.path / REPORT)
            return report
        old = None if before is None else CopyBank.load(before.bank, self._guardrails)
        pages = self._pages(here, number, before, old, progress)
        places = shown_places(
            self._world("train", self._hearing(old)),
            self._strategist(pages, old, self._hearing(old)),
            self._discounts,
            self._reward.labels,
            self._rules,
            SHOWN_SHOPPERS,
            self._config.seed + number,
        )
        model = self._rounds.writer if before is None else str(Stage(before, "grpo").out)
        writer = self._written(here, number, model, places, progress)
        chosen, covered = most_shown(places, self._rounds.places)
        if not find_directory(here.bank).is_dir():
            asked = assignments_of(chosen, self._items, SURFACE, self._rounds.voice)
            fill_bank(
                Writer.load(str(writer), self._device),
                self._guardrails,
                asked,
                self._expected,
                count=self._rounds.count,
                temperature=self._writing.temperature,
                seed=self._config.seed + number,
                progress=lambda what, done, total: progress(f"round {number}, bank: {what}", done, total, None),
            ).save(here.bank)
        bank = CopyBank.load(here.bank, self._guardrails)
        progress(f"round {number}, judge", 0, 1, None)
        report = {
            "round": number,
            "figures": self._judged(pages, old, bank),
            "covered": covered,
            "lines": len(bank),
            "filled": to_dict(bank.filled),
            "pages": read_json(here.policy / "train.json")["figures"],
            "writer": {name: read_json(writer / "train.json")[name] for name in ("steps", "level")},
        }
        write_json(here.path / REPORT, report)
        return report

    def _place(self, number: int) -> Run:
        return Run(self._run.path / "rounds" / str(number))

    def _hearing(self, *banks: CopyBank | None) -> FittedShoppers:
        """Return the shoppers, who also understand what banks say."""
        return self.shoppers.with_lines([text for bank in banks if bank is not None for text in bank.texts(SURFACE)])

    def _world(self, role: Role, hearing: FittedShoppers, doubts: bool = False) -> AudienceWorld:
        world = read(hearing, hearing.world(role, doubts), self._config.reward)
        return AudienceWorld(world, self._reward.audiences)

    def _table(self, bank: CopyBank, hearing: FittedShoppers) -> BankTable:
        assert hearing.lines is not None
        items, labels = hearing.builder.catalog.item_ids, self._reward.audiences.labels
        return BankTable.of(bank, items, labels, self._discounts, SURFACE, hearing.lines.texts, self._device)

    def _strategist(
        self, pages: PageStrategy, bank: CopyBank | None, hearing: FittedShoppers
    ) -> LikeliestPages | Strategist:
        """Return the likeliest pages, with a bank's lines where there is one."""
        likeliest = LikeliestPages(pages)
        return likeliest if bank is None else Strategist(likeliest, self._table(bank, hearing))

    def _pages(
        self, here: Run, number: int, before: Run | None, old: CopyBank | None, progress: Progress
    ) -> PageStrategy:
        """Return the round's pages, trained where the bank before says the lines."""
        if not find_directory(here.policy).is_dir():
            config = replace(self._config, seed=self._config.seed + number - 1)
            if before is None or old is None:
                course = whole_pages(self.shoppers, config)
            else:
                course = self._spoken(config, old, sha256(before.bank / CHECKSUMS))

            def told(done: int, total: int, reward: float) -> None:
                progress(f"round {number}, pages", done, total, reward)

            learn(here, self.shoppers, course, config, True, told)
        return PageStrategy.load(here.policy, self._device)

    def _spoken(self, config: TrainConfig, bank: CopyBank, digest: str) -> Course:
        """Return the course for pages whose lines a bank says: everything else of a page is learned."""
        hearing = self._hearing(bank)
        world = self._world("train", hearing, config.reward.doubts)
        spoken = SpokenWorld(world, self._table(bank, hearing), hearing.support)
        lines = () if self.shoppers.lines is None else self.shoppers.lines.texts

        def figures(strategies: list[Strategy]) -> dict[str, Figure]:
            return page_figures(spoken, strategies, config)

        return Course(
            StorefrontVecEnv(spoken, config.shoppers, config.reward, config.seed, self._parts, self._rules),
            None,
            [RandomStrategy(spoken.size)],
            figures,
            lambda model, trained_on: PageStrategy(model.policy.actor, spoken.builder, lines, trained_on),
            {"bank": digest},
        )

    def _written(self, here: Run, number: int, model: str, places: Any, progress: Progress) -> Path:
        """Return the directory of the round's writer, optimised for what the pages show."""
        out = Stage(here, "grpo").out
        if find_directory(out).is_dir():
            return out
        config = replace(self._writing, seed=self._writing.seed + number - 1)
        drawn = drawn_places(places, config.steps * config.batch // config.group, config.seed)
        preferred = Stage(self._run, "reward").out
        preferences = PreferenceModel.load(preferred, self._device) if preferred.is_dir() else None
        out, _ = grpo(
            here,
            model,
            assignments_of(drawn, self._items, SURFACE, self._rounds.voice),
            self._reward,
            self._guardrails,
            config,
            True,
            lambda done, total, reward: progress(f"round {number}, writer", done, total, reward),
            preferences,
            None,
            self.shoppers.digest,
        )
        return out

    def _judged(self, pages: PageStrategy, old: CopyBank | None, bank: CopyBank) -> dict[str, Figure]:
        """Return what the judge's shoppers make of the likeliest pages as they were trained, and with the new bank.

        Both meet the same shoppers, and what differs is told shopper by shopper.
        """
        hearing = self._hearing(old, bank)
        world = self._world("judge", hearing)
        arms: dict[str, tuple[World, LikeliestPages | Strategist]] = {
            "as_trained": (world.world if old is None else world, self._strategist(pages, old, hearing)),
            "with_bank": (world, self._strategist(pages, bank, hearing)),
        }
        found: dict[str, Followed] = {}
        for name, (judge, strategy) in arms.items():
            generator = torch.Generator(judge.device).manual_seed(self._config.seed)
            here = judge.arrive(JUDGED_SHOPPERS, generator)
            found[name] = follow(judge, strategy, here, self._config.reward.plain, self._rules, generator)
        figures = {f"reward_per_shopper.{name}": mean_figure(came.reward, "reward") for name, came in found.items()}
        gained = found["with_bank"].reward - found["as_trained"].reward
        figures["reward_per_shopper.gain"] = mean_figure(gained, "reward")
        figures |= {f"ctr.{name}": _rate(came.clicks, came.impressions) for name, came in found.items()}
        return figures


def _rate(clicks: torch.Tensor, impressions: torch.Tensor) -> Figure:
    """Return clicks per impression of shoppers (N,), with its 95% interval by the delta method."""
    rate = float(clicks.sum() / impressions.sum())
    half = 1.96 * float((clicks - rate * impressions).std()) / (float(impressions.mean()) * len(clicks) ** 0.5)
    return figure(rate, rate - half, rate + half, len(clicks), "clicks per impression")


def _keep(run: Run, best: Run) -> None:
    """Copy what a round has made to where the run's own is."""
    places = [(best.policy, "policy", run.policy), (best.bank, "copy bank", run.bank)]
    places.append((Stage(best, "grpo").out, "language model", Stage(run, "grpo").out))
    for source, kind, destination in places:
        copy_directory(source, destination, kind)


def _require_same(found: dict[str, Any], plan: dict[str, Any], home: Path) -> None:
    for name, value in plan.items():
        if found.get(name) != value:
            raise InputError(
                f"the rounds were begun with another value of {name}",
                where=home / PLAN,
                remedy="repeat it, or train without --resume to start anew",
            )
