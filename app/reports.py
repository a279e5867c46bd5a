"""What the commands print of their reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hawker.app.tables import console, figure_table, interval, number, text_table
from hawker.benchmarks.ope import ESTIMATORS


def print_fidelity(report: dict[str, Any]) -> None:
    """Print how far fitted shoppers can be believed."""
    parts = report["split"]["parts"]
    rows = [(name, f"{part['impressions']:,}", f"{part['clicks']:,}") for name, part in parts.items()]
    title = f"The log, split by {report['split']['unit']}"
    console().print(text_table(title, ("part", "impressions", "clicks"), rows, right=(1, 2)))
    console().print(figure_table("Predictions of clicks that no model has seen", report["figures"]))
    for head, state in report["heads"].items():
        console().print(f"- {head}: {state}")


def print_returns(report: dict[str, Any]) -> None:
    """Print how far a model of when shoppers come back can be believed."""
    record, held_out = report["record"], report["held_out"]
    rows = [
        ("shoppers", f"{record['shoppers']:,}"),
        (f"days with a {record['event']}", f"{record['events']:,}"),
        (f"periods of {record['period_days']} days", f"{record['periods']:,}"),
        ("held out, periods", f"{held_out['periods']:,}"),
        ("held out, from", held_out["from"][:10]),
        ("shoppers known before", f"{held_out['shoppers']:,}"),
    ]
    console().print(text_table("The log", ("what", "count"), rows, right=(1,)))
    console().print(figure_table("Forecasts of a time that no model has seen", report["figures"]))
    for head, state in report["heads"].items():
        console().print(f"- {head}: {state}")


def print_ope(report: dict[str, Any]) -> None:
    """Print off-policy estimates, a row per strategy and estimator, and what refuses them."""
    rows = []
    for name, seen in report["diagnostics"].items():
        mass = seen["unsupported_mass"]
        rows.append(
            (
                name,
                f"{seen['ess']:,.0f} of {seen['n']:,}",
                f"{seen['largest_weight_share']:.1%}",
                f"{seen['mean_weight']:.3f} ± {seen['mean_weight_error']:.3f}",
                "-" if mass is None else f"{mass:.1%}",
                f"{seen['marginal_error']:.1g}",
            )
        )
    columns = ("strategy", "effective rows", "largest weight", "mean weight", "no support", "error of marginals")
    console().print(text_table("Can the log tell?", columns, rows, right=(1, 2, 3, 4, 5)))
    console().print(figure_table("What strategies would have earned (off-policy)", chosen(report["figures"])))
    for name, reason in report["refused"].items():
        console().print(f"{name}: {'FORCED' if report['forced'] else 'no estimate'}: {reason}")
    for note in report["notes"]:
        console().print(f"- {note}")


def chosen(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the figures a person looks at first; the JSON report has all of them."""
    hidden = tuple(f"{name}." for name in ESTIMATORS if name not in ("dm", "snips", "dr"))
    return {name: value for name, value in figures.items() if not name.startswith(hidden)}


def print_ab(report: dict[str, Any]) -> None:
    """Print a simulated A/B test: arms, pairs, verdict."""
    metric = report["deciding_metric"]
    console().print(_followed_arms(report) if "days" in report else _visit_arms(report))
    pairs = []
    for pair in report["pairs"]:
        lift = report["figures"][f"pair.{pair['treatment']}.{metric}_lift"]
        model = report["figures"].get(f"pair.{pair['treatment']}.model_lift")
        pairs.append(
            (
                f"{pair['treatment']} / {pair['control']}",
                *(_percent(lift) if lift else ("-", "-")),
                *(_percent(model) if model else ("-", "truth known")),
                "yes" if pair["distinguishable"] else "no",
            )
        )
    against = ("pair", "lift", "over shoppers", "models' lift", "over models", "told apart")
    console().print(text_table("", against, pairs, right=(1, 2, 3, 4)))
    if "days" in report:
        console().print(_other_lifts(report))
    for pair in report["pairs"]:
        console().print(f"- {pair['verdict']}")
    for caution in report["cautions"]:
        console().print(f"- caution: {caution}")


def _visit_arms(report: dict[str, Any]) -> Table:
    arms = []
    for arm in report["arms"]:
        ctr, value = (report["figures"][f"arm.{arm}.{name}"] for name in ("ctr", report["deciding_metric"]))
        arms.append(
            (arm, f"{ctr['n']:,}", number(ctr["value"], ctr["unit"]), interval(ctr), number(value["value"], "clicks"))
        )
    columns = ("arm", "n", "CTR", "95% interval", "clicks a visit")
    return text_table("Simulated A/B test", columns, arms, right=(1, 2, 3, 4))


OTHERS = {"ctr": "CTR", "cvr": "CVR", "d7": "D7", "visits_per_shopper": "visits", "ad_load": "ads a page"}
"""What is shown of whole pages beside the deciding metric, by how tables call it."""


def _followed_arms(report: dict[str, Any]) -> Table:
    """Return a table of arms whose unit is a shopper's whole time."""
    arms = []
    for arm in report["arms"]:
        value, *others = (report["figures"].get(f"arm.{arm}.{name}") for name in (report["deciding_metric"], *OTHERS))
        shown = ("-" if other is None else number(other["value"], other["unit"]) for other in others)
        arms.append((arm, f"{value['n']:,}", number(value["value"], value["unit"]), interval(value), *shown))
    columns = ("arm", "n", "reward", "95% interval", *OTHERS.values())
    title = f"Simulated A/B test: n shoppers, each followed for {report['days']:g} days"
    return text_table(title, columns, arms, right=tuple(range(1, len(columns))))


def _other_lifts(report: dict[str, Any]) -> Table:
    """Return a table of the lifts of rates that do not decide, over shoppers."""
    rates = [name for name in ("ctr", "cvr", "d7") if f"arm.{report['control']}.{name}" in report["figures"]]
    rows = []
    for pair in report["pairs"]:
        lifts = (_percent(report["figures"][f"pair.{pair['treatment']}.{name}_lift"]) for name in rates)
        rows.append((f"{pair['treatment']} / {pair['control']}", *(part for lift in lifts for part in lift)))
    columns = [column for name in rates for column in (OTHERS[name], "over shoppers")]
    return text_table("Other lifts", ("pair", *columns), rows, right=tuple(range(1, len(columns) + 1)))


def _percent(figure: Any) -> tuple[str, str]:
    if figure["value"] is None or figure["low"] is None:
        return "-", "-"
    return f"{figure['value']:+.1%}", f"[{figure['low']:+.1%}, {figure['high']:+.1%}]"


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int, float], None]]:
    """Yield a function of (done, total, reward per page) that draws a progress bar where the output is a terminal."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + ", reward a page {task.fields[reward]:.4g}"),
        TimeRemainingColumn(),
    )
    screen = console()
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task("training", total=None, reward=0.0)
        yield lambda done, total, reward: bar.update(task, completed=done, total=total, reward=reward)
