"""Arms compared: metrics with intervals, lifts over a control, and when an arm may be called distinguishable.

Two things are uncertain in a simulated test, and a report that showed one of them would mislead. *Which shoppers came*:
every arm has its own random sample of them, and the intervals over shoppers shrink with their number, to nothing if one
waits long enough. *Whether the shoppers are right*: learned shoppers are models fitted on a finite log, and no number
of simulated shoppers makes them better; the interval over the judge's models says how far that log determines the lift.
An arm is called distinguishable from the control only where both intervals exclude zero.

References:
    Statistics over shoppers: tea-tasting, with the delta method of Deng et al. (2018), Applying the Delta Method in
    Metric Analytics, for ratios, and Holm (1979) for several comparisons. Checks on the arms' sizes: Fabijan et al.
    (2019), Diagnosing Sample Ratio Mismatch in Online Controlled Experiments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import tea_tasting as tt
import tea_tasting.aggr
from scipy import stats

from hawker.policies.protocol import Strategy
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure

Floats = npt.NDArray[np.float64]

ALPHA = 0.05
"""Level of every test and interval: intervals are 95%."""

MIN_SHOPPERS = 100
"""Fewest shoppers for each arm, on average."""

MIN_CLICKS = 20
"""Fewest clicks in the two arms of a pair together for its test, which is a normal approximation, to be trusted."""

RATIO_ALPHA = 0.001
"""A sample ratio less likely than this under fair assignment voids a pair, as it would in a real test."""

IMPLAUSIBLE = 0.5
"""A lift beyond this earns a caution: most real lifts of learned strategies lie between 0.05% and 7%."""


class Metric(NamedTuple):
    """A metric: the sum of one column of the rows over the sum of another, or over the number of rows.

    Attributes:
        numerator: Column.
        denominator: Column, or None.
        unit: Of the metric.
        phrase: What a verdict calls it: "+2% PHRASE".
        counts: Whether it is of counts, which are never below 0.
    """

    numerator: str
    denominator: str | None
    unit: str
    phrase: str
    counts: bool = True


Metrics = Mapping[str, Metric]
Views = Mapping[str, Floats]
"""By arm, the lift over the control that each of M models sees, (M,)."""


def compare(
    rows: pd.DataFrame, names: Sequence[str], metrics: Metrics, deciding: str, views: Views | None
) -> dict[str, Any]:
    """Compare arms with the first of them.

    Args:
        rows: One row per unit of the test, with the column ``arm`` (name) and those of the metrics.
        names: The arms, the control first.
        metrics: What is measured.
        deciding: The one that decides.
        views: What the judge's models see; None where the truth is known.

    Returns:
        ``figures``, ``pairs``, ``verdict``, ``cautions``, ``control``, ``arms``, ``deciding_metric`` and
        ``correction``, as `hawker.benchmarks.abtest.ab_test` describes them.
    """
    aggregates = _aggregate(rows, metrics)
    figures = _arm_figures(aggregates, names, metrics)
    results = _compare(aggregates, names[0], metrics)
    corrected = _holm(results, metrics)
    pairs, cautions = [], []
    for name in names[1:]:
        result = results[names[0], name]
        clicks = int(rows["clicks"][rows["arm"].isin([names[0], name])].sum())
        both = int(result["sample_ratio"].control + result["sample_ratio"].treatment)
        figures |= _pair_figures(result, name, both, metrics)
        lift, model = figures[f"pair.{name}.{deciding}_lift"], None
        if views is not None:
            model = figure(*model_interval(views[name]), len(views[name]), "ratio")
            figures[f"pair.{name}.model_lift"] = model
        p_values = {metric: float(corrected[names[0], name][metric]["pvalue_adj"]) for metric in metrics}
        doubts = _doubts(lift, model, p_values[deciding], result["sample_ratio"], clicks)
        pairs.append(
            {
                "treatment": name,
                "control": names[0],
                "p": {metric: _p_value(result[metric]) for metric in metrics},
                "p_corrected": p_values,
                "p_sample_ratio": float(result["sample_ratio"].pvalue),
                "distinguishable": not doubts,
                "doubts": doubts,
                "verdict": _verdict(name, names[0], metrics[deciding].phrase, lift, model, doubts),
            }
        )
        if any(abs(seen["value"] or 0.0) > IMPLAUSIBLE for seen in (lift, model) if seen):
            cautions.append(f"a lift of {name} beyond {IMPLAUSIBLE:.0%} is a mistake until shown otherwise")
    return {
        "figures": figures,
        "pairs": pairs,
        "verdict": _overall(names[0], pairs),
        "cautions": cautions,
        "control": names[0],
        "arms": list(names),
        "deciding_metric": deciding,
        "correction": f"Holm over {len(pairs)} comparison{'s' if len(pairs) > 1 else ''}",
    }


def model_interval(lifts: Floats) -> tuple[float, float, float]:
    """Return the mean of the models' lifts (M,) and the 95% interval of the lift that the log determines.

    A model fitted on a bootstrap of the log is one draw from (an estimate of) the sampling distribution of "fit a model
    on such a log". The deviation between models therefore *is* the standard error of the lift, and is not divided by
    sqrt(M): more models tell how uncertain the log leaves us, they do not add to the log. With s the deviation of M
    models, truth minus their mean has variance s^2 from the log and s^2 / M from drawing few models, so the interval
    is mean -+ t(0.975, M - 1) s sqrt(1 + 1/M); one model has none (NaN). Where each model's lift is itself measured on
    drawn shoppers, s holds that error too: with few shoppers the interval is too wide, never too narrow.

    It is the least one should doubt, for what all models share is not in it: their form, their calibration, the
    assumption that next month is like the log, and above all their priors, which draw every lift towards zero where
    clicks are few. There the interval lies too near zero to cover a great lift: trust its sign, not its size.
    """
    m, mean = len(lifts), float(lifts.mean())
    if m < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(1 - ALPHA / 2, m - 1) * lifts.std(ddof=1) * math.sqrt(1 + 1 / m))
    return mean, mean - half, mean + half


def _aggregate(rows: pd.DataFrame, metrics: Metrics) -> dict[str, Any]:
    """Return tea-tasting's counts, means, variances and covariances by arm."""
    columns = sorted({c for metric in metrics.values() for c in (metric.numerator, metric.denominator) if c})
    products = [(a, b) for a in columns for b in columns if a < b]
    aggregates: dict[str, Any] = tea_tasting.aggr.read_aggregates(
        rows, "arm", has_count=True, mean_cols=columns, var_cols=columns, cov_cols=products
    )
    return aggregates


def _arm_figures(aggregates: dict[str, Any], names: Sequence[str], metrics: Metrics) -> dict[str, Figure]:
    figures = {}
    for name in names:
        arm = aggregates[name].with_zero_div()
        n = arm.count()
        for key, metric in metrics.items():
            value = float(arm.mean(metric.numerator) / arm.mean(metric.denominator))
            variance = float(arm.ratio_var(metric.numerator, metric.denominator))
            # Without any variation, as without any click, the sample says nothing of its own error.
            half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * math.sqrt(variance / n) if variance > 0 else math.nan
            low = max(0.0, value - half) if metric.counts and variance > 0 else value - half
            figures[f"arm.{name}.{key}"] = figure(value, low, value + half, n, metric.unit)
    return figures


def _compare(aggregates: dict[str, Any], control: str, metrics: Metrics) -> Any:
    """Return tea-tasting's results by (control, treatment), then by metric and ``sample_ratio``."""
    options = {"alternative": "two-sided", "confidence_level": 1 - ALPHA, "equal_var": False, "use_t": True}
    ratios = {key: tt.RatioOfMeans(m.numerator, m.denominator, **options) for key, m in metrics.items()}
    with np.errstate(all="ignore"):  # an arm without a click has a relative effect of NaN, and that is what is wanted
        experiment = tt.Experiment({**ratios, "sample_ratio": tt.SampleRatio(correction=True)}, "arm")
        return experiment.analyze(aggregates, control=control, all_variants=True)


def _holm(results: Any, metrics: Metrics) -> Any:
    """Return the results with Holm's correction over the pairs, one metric at a time."""
    adjusted: dict[Any, dict[str, Any]] = {pair: {} for pair in results}
    for metric in metrics:
        tested = {}
        for pair, result in results.items():
            p = _p_value(result[metric])  # where nothing varies there is none, and nothing is shown
            tested[pair] = tt.experiment.ExperimentResult(
                {metric: result[metric]._replace(pvalue=1.0 if p is None else p)}
            )
        holm = tt.adjust_fwer(tested, metric, alpha=ALPHA, arbitrary_dependence=True, method="bonferroni")
        for pair in adjusted:
            adjusted[pair][metric] = holm[pair][metric]
    return adjusted


def _p_value(result: Any) -> float | None:
    return float(result.pvalue) if math.isfinite(result.pvalue) else None


def _pair_figures(result: Any, name: str, n: int, metrics: Metrics) -> dict[str, Figure]:
    figures = {}
    for key, metric in metrics.items():
        r = result[key]
        relative = (r.rel_effect_size, r.rel_effect_size_ci_lower, r.rel_effect_size_ci_upper)
        absolute = (r.effect_size, r.effect_size_ci_lower, r.effect_size_ci_upper)
        figures[f"pair.{name}.{key}_lift"] = figure(*relative, n, "ratio")
        figures[f"pair.{name}.{key}_difference"] = figure(*absolute, n, metric.unit)
    return figures


def _sign(seen: Figure) -> int:
    """Return 1 or -1 where an interval excludes zero, else 0."""
    if seen["low"] is None or seen["high"] is None:
        return 0
    return int(seen["low"] > 0) - int(seen["high"] < 0)


def _doubts(lift: Figure, model: Figure | None, p_corrected: float, ratio: Any, clicks: int) -> list[str]:
    """Return every reason not to call a pair distinguishable."""
    doubts = []
    if ratio.pvalue < RATIO_ALPHA:
        doubts.append(f"arms of {ratio.control:,} and {ratio.treatment:,} shoppers are no fair assignment")
    if clicks < MIN_CLICKS:
        doubts.append(f"only {clicks} clicks in both arms together")
    if p_corrected >= ALPHA or _sign(lift) == 0:
        doubts.append(f"the simulated shoppers do not tell them apart (corrected p = {p_corrected:.2g})")
    if model is not None and model["low"] is None:
        doubts.append("one model cannot say how far it may be wrong")
    elif model is not None and _sign(model) == 0:
        doubts.append("the log behind the judge does not tell them apart (its models' interval holds zero)")
    elif model is not None and _sign(model) == -_sign(lift):
        doubts.append("the judge's models and its shoppers point in opposite directions")
    return doubts


def _verdict(treatment: str, control: str, phrase: str, lift: Figure, model: Figure | None, doubts: list[str]) -> str:
    value = lift["value"]
    seen = "no lift can be given" if value is None else f"{value:+.2%} {phrase}"
    inside = "; ".join(
        f"95% over {over} {f['low']:+.2%} to {f['high']:+.2%}"
        for over, f in (("shoppers", lift), ("models", model))
        if f is not None and f["low"] is not None
    )
    seen = f"{seen} ({inside})" if inside else seen
    if doubts:
        return f"{treatment} is not distinguishable from {control}: {seen}; {'; '.join(doubts)}"
    assert value is not None  # an interval that excludes zero has a value
    return f"{treatment} does {'better' if value > 0 else 'worse'} than {control} among these shoppers: {seen}"


def _overall(control: str, pairs: list[dict[str, Any]]) -> str:
    told = [pair["verdict"] for pair in pairs if pair["distinguishable"]]
    rest = [pair["treatment"] for pair in pairs if not pair["distinguishable"]]
    if rest:
        told.append(f"not distinguishable from {control}: {', '.join(rest)}")
    return ". ".join(told)


def judged_by(models: int | None) -> str:
    """Say what the shoppers of a test are worth: learned by a number of models, or those of a known truth (None)."""
    if models is None:
        return "a world whose truth is known: nothing but the drawing of shoppers is uncertain"
    return (
        f"shoppers learned from a log, {models} models: a simulation, not a measurement on real shoppers; "
        "where the log has few clicks it draws lifts towards zero, so look at their sign, not their size"
    )


def require_arms(arms: Sequence[Strategy], size: int, shoppers: int, seed: int) -> None:
    """Refuse arms that cannot be compared on pages of ``size`` slots, and numbers that make no test.

    Raises:
        InputError: Fewer than two arms, names that repeat, slates of another size, too few shoppers, a bad seed.
    """
    names = [arm.name for arm in arms]
    if len(names) < 2:
        raise InputError("an A/B test compares two or more arms", where="arms", got=names, expected="2 or more")
    for i, (name, arm) in enumerate(zip(names, arms, strict=True)):
        if name in names[:i]:
            raise InputError("two arms have one name", where="arms", got=name, expected="names that differ")
        if arm.size != size:
            expected = f"{size}, as the world's pages"
            raise InputError("slates of another size", where=f"arm {name}", got=arm.size, expected=expected)
    least = MIN_SHOPPERS * len(names)
    if isinstance(shoppers, bool) or not isinstance(shoppers, int) or shoppers < least:
        expected = f"an integer of at least {least}, {MIN_SHOPPERS} for each arm"
        raise InputError("bad number of shoppers", where="shoppers", got=shoppers, expected=expected)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError("bad seed", where="seed", got=seed, expected="an integer of at least 0")
