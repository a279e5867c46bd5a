"""The commands ``hawker bench ...``: the figures of the README, made anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from hawker.app.json_report import Json, write_report
from hawker.app.tables import arms_table, console, figure_table, front_table


@dataclass(frozen=True)
class BenchSignal:
    """Plant click effects in logs of a shop's own shape and see whether the line finds them.

    Args:
        logs: A logs directory to take shoppers, items and times from; by default the Open Bandit sample.
        impressions: Rows of each planted log.
        ctr: Planted click rate.
        seeds: Planted worlds.
        repeats: Logs drawn to count how often intervals hold the truth.
        quick: One small world and few repeats, for a look.
    """

    logs: Path | None = None
    impressions: int = 200_000
    ctr: float = 0.02
    seeds: tuple[int, ...] = (11, 12, 13)
    repeats: int = 100
    quick: bool = False
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_signal

        report = run_signal(
            self.logs, self.impressions, self.ctr, self.seeds, self.repeats, self.quick, console().print
        )
        console().print(figure_table("A planted signal", report["figures"]))
        write_report(self.json, report)


@dataclass(frozen=True)
class BenchFidelity:
    """Fit shoppers to logs of a gold world and hold them against its truth.

    Args:
        variant: The bazaar: a shipped variant (cascade, inert, weibull) or a YAML file; by default the base.
        seeds: Logs, each with its own fit and fresh shoppers. Logs and fits are kept under $HAWKER_HOME/bench.
        quick: One small log, for a look.
        html: Write reliability diagrams and distributions here, as one page that needs nothing else.
    """

    variant: str | None = None
    seeds: tuple[int, ...] = (21, 22, 23)
    quick: bool = False
    html: Annotated[Path | None, arg(metavar="PATH")] = None
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_fidelity

        report = run_fidelity(self.variant, self.seeds, self.quick, self.html, console().print)
        console().print(figure_table("How far the learned shoppers can be believed", report["figures"]))
        for note in report["notes"]:
            console().print(f"- {note}")
        write_report(self.json, report)
        if self.html is not None:
            from hawker.app.fidelity_page import write_page

            write_page(report, self.html)


@dataclass(frozen=True)
class BenchSpeed:
    """Time simulated shoppers in the whole storefront, on one core and on two.

    Run it on an idle machine: the report says how loaded it was.

    Args:
        shoppers: Fitted shoppers; by default those of `hawker bench fidelity`, fitted unless they are there.
        quick: Small fits and short timings, for a look.
    """

    shoppers: Path | None = None
    quick: bool = False
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_speed

        report = run_speed(self.shoppers, self.quick, console().print)
        console().print(figure_table("How fast simulated shoppers are", report["figures"]))
        before, after = (report["load"][when][0] for when in ("before", "after"))
        console().print(f"- load average {before:.2f} before, {after:.2f} after")
        write_report(self.json, report)


@dataclass(frozen=True)
class BenchLeaderboard:
    """Train strategies on logs of gold worlds, and judge them in those worlds beside baselines.

    Args:
        variants: Worlds: base, a shipped variant (cascade, inert, weibull) or a YAML file; inert is the control.
        seeds: One log, fit, training and judgement each. Logs and fits are kept under $HAWKER_HOME/bench.
        steps: Pages that PPO learns from; by default as many as the README's figures.
        quick: One small log and a short training, for a look.
    """

    variants: tuple[str, ...] = ("base", "inert")
    seeds: tuple[int, ...] = (21, 22, 23, 24, 25)
    steps: int | None = None
    quick: bool = False
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_leaderboard

        report = run_leaderboard(self.variants, self.seeds, self.steps, self.quick, console().print)
        for variant, arms in report["arms"].items():
            console().print(arms_table(f"Strategies in the gold world {variant}", arms))
        console().print(figure_table("PPO among them", report["figures"]))
        write_report(self.json, report)


@dataclass(frozen=True)
class BenchPareto:
    """Sweep the reward's weights, and see what CTR, conversion and retention cost each other.

    Args:
        seeds: One log, fit and sweep of ten trainings each. Logs and fits are kept under $HAWKER_HOME/bench.
        steps: Pages that each strategy learns from; by default as many as in `hawker bench leaderboard`.
        quick: One small log and three short trainings, for a look.
        html: Write the front, as charts, here: one page that needs nothing else.
    """

    seeds: tuple[int, ...] = (21, 22, 23)
    steps: int | None = None
    quick: bool = False
    html: Annotated[Path | None, arg(metavar="PATH")] = None
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_pareto

        report = run_pareto(self.seeds, self.steps, self.quick, self.html, console().print)
        console().print(front_table("Weightings in the gold world", report["arms"]))
        console().print(figure_table("What is to be traded", report["figures"]))
        for note in report["notes"]:
            console().print(f"- {note}")
        write_report(self.json, report)
        if self.html is not None:
            from hawker.app.pareto_page import write_page

            write_page(report, self.html)


@dataclass(frozen=True)
class BenchConstraints:
    """Train and settle under a limit on ads and a promised share of exposure, and see if both hold.

    Args:
        seeds: One log, fit and pair of trainings each. Logs and fits are kept under $HAWKER_HOME/bench.
        quick: One small log and a short training, for a look.
    """

    seeds: tuple[int, ...] = (61, 62, 63)
    quick: bool = False
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_constraints

        report = run_constraints(self.seeds, self.quick, console().print)
        console().print(figure_table("Limits on ads and exposure", report["figures"]))
        write_report(self.json, report)


@dataclass(frozen=True)
class BenchExploits:
    """Deceive learned shoppers about a discount in three ways, and see which strategies fall for it.

    Args:
        seeds: Three logs and fits and seven trainings each.
        quick: Small logs and short trainings, for a look.
    """

    seeds: tuple[int, ...] = (71, 72, 73)
    quick: bool = False
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_exploits

        report = run_exploits(self.seeds, self.quick, console().print)
        console().print(figure_table("Planted exploits", report["figures"]))
        write_report(self.json, report)


@dataclass(frozen=True)
class BenchWriter:
    """Train a language model on a log's copy and against learned shoppers, and judge it in gold.

    Args:
        model: The language model: a fetched name, a directory or a hub id.
        seeds: One log, fit, writer and judgement each. Logs and fits are kept under $HAWKER_HOME/bench.
        ablations: Train writers without pessimism, without KL, and on drawn clicks too.
        quick: One small log and two steps of each training, for a look.
        keep: Directory that keeps the writers; a benchmark that was broken off goes on from there.
        html: Write proxy and gold along the optimisation, and lines before and after: one page that needs nothing else.
    """

    model: str = "smollm2-135m"
    seeds: tuple[int, ...] = (21, 22, 23)
    ablations: bool = False
    quick: bool = False
    keep: Path | None = None
    html: Annotated[Path | None, arg(metavar="PATH")] = None
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_writer

        asked = (self.model, self.seeds, self.ablations, self.quick, self.keep, self.html)
        report = run_writer(*asked, console().print)
        for sample in report["samples"]:
            console().print(f"- {sample['item']}: {sample['before']} -> {sample['after']}", markup=False)
        console().print(figure_table("The writer", report["figures"]))
        write_report(self.json, report)
        if self.html is not None:
            from hawker.app.writer_page import write_page

            write_page(report, self.html)


@dataclass(frozen=True)
class BenchStrategist:
    """Train pages and a language model's words on them in turn, and see in gold what the words earn.

    Args:
        model: The language model: a fetched name, a directory or a hub id.
        seeds: One log, fit, training and judgement each. Logs and fits are kept under $HAWKER_HOME/bench.
        quick: One small log and a short training, for a look.
        keep: Directory that keeps the runs; a benchmark that was broken off goes on from there.
    """

    model: str = "smollm2-135m"
    seeds: tuple[int, ...] = (21, 22, 23)
    quick: bool = False
    keep: Path | None = None
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_strategist

        report = run_strategist(self.model, self.seeds, self.quick, self.keep, console().print)
        console().print(arms_table("Strategies in the gold world", report["arms"]))
        console().print(figure_table("The strategist among them", report["figures"]))
        write_report(self.json, report)


@dataclass(frozen=True)
class BenchEmbeddings:
    """See in gold whether a language model's reading of items sells new ones better than TF-IDF or ids.

    Args:
        model: The language model: a fetched name, a directory or a hub id.
        seeds: One catalogue and log, and five fits and trainings each. Logs and fits are kept in $HAWKER_HOME/bench.
        quick: One small log and short trainings, for a look.
    """

    model: str = "smollm2-135m"
    seeds: tuple[int, ...] = (21, 22, 23)
    quick: bool = False
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_embeddings

        report = run_embeddings(self.model, self.seeds, self.quick, console().print)
        for pool, arms in report["arms"].items():
            console().print(arms_table(f"Strategies in the gold world, {pool} items", arms))
        console().print(figure_table("A language model's reading of items", report["figures"]))
        for note in report["notes"]:
            console().print(f"- {note}")
        write_report(self.json, report)


@dataclass(frozen=True)
class BenchBackbone:
    """See whether a language model that learns from PPO to read items earns anything.

    Pages are learned twice from the same seed, through the eyes of the model as it is and under LoRA. A judge, whom
    nothing was trained against, says which to keep; the gold world says who was right, on new items too.

    Args:
        model: The language model: a fetched name, a directory or a hub id.
        seeds: One log, fit and pair of trainings each. Logs and fits are kept under $HAWKER_HOME/bench.
        quick: One small log and short trainings, for a look.
    """

    model: str = "smollm2-135m"
    seeds: tuple[int, ...] = (21, 22, 23)
    quick: bool = False
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_backbone

        report = run_backbone(self.model, self.seeds, self.quick, console().print)
        for pool, arms in report["arms"].items():
            console().print(arms_table(f"Pages in the gold world, {pool} items", arms))
        console().print(figure_table("A language model tuned for the choices", report["figures"]))
        for note in report["notes"]:
            console().print(f"- {note}")
        write_report(self.json, report)


@dataclass(frozen=True)
class BenchSearch:
    """Learn what typed words have to do with items from clicks, and grade pages for them beside BM25.

    Args:
        variant: A bazaar with a search box: the shipped variant, or a YAML file.
        seeds: One log, fit and training each. Logs and fits are kept under $HAWKER_HOME/bench.
        quick: One small log and a short training, for a look.
    """

    variant: str = "search"
    seeds: tuple[int, ...] = (21, 22, 23)
    quick: bool = False
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_search

        report = run_search(self.variant, self.seeds, self.quick, console().print)
        console().print(arms_table("Strategies in a bazaar with a search box", report["arms"]))
        console().print(figure_table("What is found for what is typed", report["figures"]))
        write_report(self.json, report)


@dataclass(frozen=True)
class BenchWhy:
    """Remove the reasons that decisions name, and see whether their scores move as they should.

    Args:
        seeds: One log, fit and training each, and 1,000 decisions. Logs and fits are kept under $HAWKER_HOME/bench.
        quick: One small log and a short training, for a look.
    """

    seeds: tuple[int, ...] = (21, 22, 23)
    quick: bool = False
    json: Json = None

    def run(self) -> None:
        """Run the benchmark."""
        from hawker.app.bench import run_why

        report = run_why(self.seeds, self.quick, console().print)
        console().print(figure_table("Are reasons faithful?", report["figures"]))
        write_report(self.json, report)


BENCHES: dict[str, type[Any]] = {
    "bench signal": BenchSignal,
    "bench fidelity": BenchFidelity,
    "bench speed": BenchSpeed,
    "bench leaderboard": BenchLeaderboard,
    "bench pareto": BenchPareto,
    "bench constraints": BenchConstraints,
    "bench exploits": BenchExploits,
    "bench writer": BenchWriter,
    "bench strategist": BenchStrategist,
    "bench embeddings": BenchEmbeddings,
    "bench backbone": BenchBackbone,
    "bench search": BenchSearch,
    "bench why": BenchWhy,
}
