"""``hawker ab``: a simulated A/B test of strategies on the shoppers of a world.

Two things are uncertain in it, and a report that showed one of them would mislead. *Which shoppers came*: every arm has
its own random sample of them, and the intervals over shoppers shrink with their number, to nothing if one waits long
enough. *Whether the shoppers are right*: learned shoppers are click models fitted on a finite log, and no number of
simulated shoppers makes them better; the interval over the judge's models says how far that log determines the lift.
An arm is called distinguishable from the control only where both intervals exclude zero.

References:
    Statistics over shoppers: tea-tasting, with the delta method of Deng et al. (2018), Applying the Delta Method in
    Metric Analytics, for ratios, and Holm (1979) for several comparisons. Checks on the arms' sizes: Fabijan et al.
    (2019), Diagnosing Sample Ratio Mismatch in Online Controlled Experiments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import tea_tasting as tt
import tea_tasting.aggr
import torch
from scipy import stats
from torch import Tensor

from hawker.policies.protocol import Strategy
from hawker.shop.config import to_dict
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.reward import RewardSpec
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.world import Shoppers, World

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

COMMON_SHOPPERS = 20_000
"""Fewest shoppers that all arms share for the view of the judge's models."""

CHUNK = 10_000
"""Shoppers simulated at once."""

MAX_PAGES = 1000
"""Pages of a visit after which the world, not the shopper, is at fault."""


class _Metric(NamedTuple):
    """A metric: the sum of one column of the visits over the sum of another, or over the number of visits."""

    numerator: str
    denominator: str | None
    unit: str


METRICS = {
    "ctr": _Metric("clicks", "impressions", "probability"),
    "clicks_per_visit": _Metric("clicks", None, "clicks"),
    "reward_per_visit": _Metric("reward", None, "reward"),
}
"""What is measured; CTR is clicks per impression, as a ratio of sums."""

DECIDING = "clicks_per_visit"
"""The metric that decides: showing fewer items can raise the CTR while it loses clicks."""

COLUMNS = ["pages", "impressions", "clicks", "reward"]
"""What is counted of each visit."""


def ab_test(
    arms: Sequence[Strategy], world: World, *, shoppers: int, seed: int, reward: RewardSpec | None = None
) -> dict[str, Any]:
    """Run a simulated A/B test and report what it can and cannot tell.

    Args:
        arms: Two or more strategies with different names; the first is the control.
        world: The shoppers; learned ones should be the judge's, which no strategy was trained on.
        shoppers: Shoppers in all; each of them goes to one arm at random, as in a real test.
        seed: Decides shoppers, assignment, slates and clicks.
        reward: What the shop wants, for the metric ``reward_per_visit``; by default expected clicks.

    Returns:
        A report of JSON values.

        - ``figures``: ``arm.NAME.METRIC`` for every metric of ``METRICS``, with its interval over shoppers; for every
          arm but the control ``pair.NAME.METRIC_lift`` (relative to the control), ``pair.NAME.METRIC_difference`` and
          ``pair.NAME.model_lift``: the lift of clicks per visit as the judge's models see it, with ``model_interval``
          (its ``n`` counts models; absent where the truth is known).
        - ``pairs``: for every arm but the control, p-values by metric, raw and corrected (Holm over the arms, for each
          metric by itself), the sample ratio's p-value, ``distinguishable``, the ``doubts`` why not, and a ``verdict``.
        - ``verdict``, ``cautions``, ``judged_by``, and what the test was asked for.

    Raises:
        InputError: Fewer than two arms, names that repeat, arms that do not fit the world's pages, too few shoppers,
            probabilities that are not numbers.
    """
    _check(arms, world, shoppers, seed)
    reward = reward or RewardSpec()
    names = [arm.name for arm in arms]
    play_seed, *common_seeds = (int(word) for word in np.random.SeedSequence(seed).generate_state(3, np.uint64))
    visits = play(arms, world, shoppers, play_seed, reward)
    aggregates = _aggregate(visits)
    figures = _arm_figures(aggregates, names)
    results = _compare(aggregates, names[0])
    corrected = _holm(results)
    views = member_views(arms, world, max(shoppers // len(arms), COMMON_SHOPPERS), *common_seeds)
    pairs, cautions = [], []
    for i, name in enumerate(names[1:], start=1):
        result = results[names[0], name]
        clicks = int(visits["clicks"][visits["arm"].isin([names[0], name])].sum())
        both = int(result["sample_ratio"].control + result["sample_ratio"].treatment)
        figures |= _pair_figures(result, name, both)
        lift, model = figures[f"pair.{name}.{DECIDING}_lift"], None
        if views is not None:
            with np.errstate(invalid="ignore", divide="ignore"):
                lifts = views[i] / views[0] - 1.0
            model = figure(*model_interval(lifts), len(lifts), "ratio")
            figures[f"pair.{name}.model_lift"] = model
        p_values = {metric: float(corrected[names[0], name][metric]["pvalue_adj"]) for metric in METRICS}
        doubts = _doubts(lift, model, p_values[DECIDING], result["sample_ratio"], clicks)
        pairs.append(
            {
                "treatment": name,
                "control": names[0],
                "p": {metric: _p_value(result[metric]) for metric in METRICS},
                "p_corrected": p_values,
                "p_sample_ratio": float(result["sample_ratio"].pvalue),
                "distinguishable": not doubts,
                "doubts": doubts,
                "verdict": _verdict(name, names[0], lift, model, doubts),
            }
        )
        if any(abs(seen["value"] or 0.0) > IMPLAUSIBLE for seen in (lift, model) if seen):
            cautions.append(f"a lift of {name} beyond {IMPLAUSIBLE:.0%} is a mistake until shown otherwise")
    return {
        "figures": figures,
        "pairs": pairs,
        "verdict": _overall(names[0], pairs),
        "cautions": cautions,
        "judged_by": _judge(views),
        "control": names[0],
        "arms": names,
        "deciding_metric": DECIDING,
        "correction": f"Holm over {len(pairs)} comparison{'s' if len(pairs) > 1 else ''}",
        "shoppers": shoppers,
        "reward": to_dict(reward),
        "seed": seed,
    }


def play(arms: Sequence[Strategy], world: World, shoppers: int, seed: int, reward: RewardSpec) -> pd.DataFrame:
    """Let shoppers arrive, assign each to an arm at random, and play their visits to the end.

    Args:
        arms: The strategies.
        world: The shoppers.
        shoppers: Shoppers in all.
        seed: Decides everything that is drawn.
        reward: What a page is worth.

    Returns:
        One row per visit: ``arm`` (name), and its sums of ``pages``, ``impressions``, ``clicks``, ``reward``.

    Raises:
        InputError: A probability is not a number.
    """
    generator = torch.Generator(world.device).manual_seed(seed)
    codes, sums = [], []
    with torch.no_grad():
        for start in range(0, shoppers, CHUNK):
            arrived = world.arrive(min(CHUNK, shoppers - start), generator)
            assigned = torch.randint(len(arms), arrived.member.shape, generator=generator, device=world.device)
            counted = torch.zeros(len(assigned), len(COLUMNS), dtype=torch.float64, device=world.device)
            for i, arm in enumerate(arms):
                rows = (assigned == i).nonzero().squeeze(1)
                if len(rows):
                    counted[rows] = _visit(arm, world, arrived.take(rows), reward, generator)
            codes.append(assigned.cpu())
            sums.append(counted.cpu())
    visits = pd.DataFrame(torch.cat(sums).numpy(), columns=COLUMNS)
    visits.insert(0, "arm", np.array([arm.name for arm in arms], dtype=object)[torch.cat(codes).numpy()])
    return visits.astype({"pages": np.int64, "impressions": np.int64, "clicks": np.int64})


def _visit(arm: Strategy, world: World, shoppers: Shoppers, reward: RewardSpec, generator: torch.Generator) -> Tensor:
    """Play the visits of n shoppers to their end; return what is counted of each, shape (n, len(COLUMNS))."""
    n = len(shoppers.member)
    counted = torch.zeros(n, len(COLUMNS), dtype=torch.float64, device=world.device)
    there = torch.arange(n, device=world.device)
    previous = torch.full((n, world.size), EMPTY, device=world.device)
    for _ in range(MAX_PAGES):
        decision = _propose(arm, shoppers.context, generator)
        after, outcome = world.respond(shoppers, decision, generator)
        if not bool(torch.isfinite(outcome.click_probability).all()):
            raise InputError("the world's click probability is not a number", where=f"arm {arm.name}")
        worth = torch.zeros(len(decision.slate), dtype=torch.float64, device=world.device)
        for part in reward.components(outcome, decision, world.bids, previous).values():
            worth = worth + part
        shown = (decision.slate != EMPTY).sum(1)
        counted[there] += torch.stack([torch.ones_like(worth), shown, outcome.clicked.sum(1), worth], 1)
        ended = outcome.gone if outcome.leave is None else outcome.gone | outcome.leave
        if bool(ended.all()):
            return counted
        stay = (~ended).nonzero().squeeze(1)
        there, shoppers, previous = there[stay], after.take(stay), decision.slate[stay]
    raise RuntimeError(f"after {MAX_PAGES} pages {len(there)} of {n} shoppers are still there")


def _propose(arm: Strategy, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
    """Return the arm's decisions; a strategy whose training diverged is stopped here."""
    decision = arm.propose(context, generator)
    if not bool(torch.isfinite(decision.log_prob).all()):
        raise InputError("a slate's log-probability is not a number", where=f"arm {arm.name}", remedy="train it anew")
    return decision


def member_views(
    arms: Sequence[Strategy], world: World, shoppers: int, arrival_seed: int, slate_seed: int
) -> npt.NDArray[np.float64] | None:
    """Return the clicks per page that each of the world's models expects of each arm, shape (n_arms, M).

    All arms meet the same shoppers and draw their slates once, for all models, from the same random numbers, so that
    what differs between two arms is the arms, and what differs between two models is the models. A world without
    models, whose click probabilities are the truth, has no such views: None.

    Args:
        arms: The strategies.
        world: The shoppers.
        shoppers: How many of them, each at the first page of a visit.
        arrival_seed: Decides who arrives.
        slate_seed: Decides the slates.
    """
    if not isinstance(world, LearnedWorld):
        return None
    arrivals = torch.Generator(world.device).manual_seed(arrival_seed)
    slates = [torch.Generator(world.device).manual_seed(slate_seed) for _ in arms]
    expected = torch.zeros(len(arms), len(world.ensemble.members), dtype=torch.float64, device=world.device)
    with torch.no_grad():
        for start in range(0, shoppers, CHUNK):
            context = world.arrive(min(CHUNK, shoppers - start), arrivals).context
            for i, arm in enumerate(arms):
                probability = world.click_probabilities(context, _propose(arm, context, slates[i]).slate)  # (M, n, K)
                expected[i] += probability.sum((1, 2), dtype=torch.float64)
    views: npt.NDArray[np.float64] = (expected / shoppers).cpu().numpy()
    return views


def model_interval(lifts: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the mean of the models' lifts (M,) and the 95% interval of the lift that the log determines.

    A model fitted on a bootstrap of the log is one draw from (an estimate of) the sampling distribution of "fit a model
    on such a log". The deviation between models therefore *is* the standard error of the lift, and is not divided by
    sqrt(M): more models tell how uncertain the log leaves us, they do not add to the log. With s the deviation of M
    models, truth minus their mean has variance s^2 from the log and s^2 / M from drawing few models, so the interval
    is mean -+ t(0.975, M - 1) s sqrt(1 + 1/M); one model has none (NaN).

    It is the least one should doubt, for what all models share is not in it: their form, their calibration, the
    assumption that next month is like the log, and above all their priors, which draw every lift towards zero where
    clicks are few. There the interval lies too near zero to cover a great lift: trust its sign, not its size.
    """
    m, mean = len(lifts), float(lifts.mean())
    if m < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(1 - ALPHA / 2, m - 1) * lifts.std(ddof=1) * math.sqrt(1 + 1 / m))
    return mean, mean - half, mean + half


def _aggregate(visits: pd.DataFrame) -> dict[str, Any]:
    """Return tea-tasting's counts, means, variances and covariances by arm."""
    columns = sorted({c for metric in METRICS.values() for c in (metric.numerator, metric.denominator) if c})
    products = [(a, b) for a in columns for b in columns if a < b]
    aggregates: dict[str, Any] = tea_tasting.aggr.read_aggregates(
        visits, "arm", has_count=True, mean_cols=columns, var_cols=columns, cov_cols=products
    )
    return aggregates


def _arm_figures(aggregates: dict[str, Any], names: list[str]) -> dict[str, Figure]:
    figures = {}
    for name in names:
        arm = aggregates[name].with_zero_div()
        n = arm.count()
        for key, metric in METRICS.items():
            value = float(arm.mean(metric.numerator) / arm.mean(metric.denominator))
            variance = float(arm.ratio_var(metric.numerator, metric.denominator))
            # Without any variation, as without any click, the sample says nothing of its own error.
            half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * math.sqrt(variance / n) if variance > 0 else math.nan
            low = max(0.0, value - half) if metric.numerator == "clicks" and variance > 0 else value - half
            figures[f"arm.{name}.{key}"] = figure(value, low, value + half, n, metric.unit)
    return figures


def _compare(aggregates: dict[str, Any], control: str) -> Any:
    """Return tea-tasting's results by (control, treatment), then by metric and ``sample_ratio``."""
    options = {"alternative": "two-sided", "confidence_level": 1 - ALPHA, "equal_var": False, "use_t": True}
    metrics = {key: tt.RatioOfMeans(m.numerator, m.denominator, **options) for key, m in METRICS.items()}
    with np.errstate(all="ignore"):  # an arm without a click has a relative effect of NaN, and that is what is wanted
        experiment = tt.Experiment({**metrics, "sample_ratio": tt.SampleRatio(correction=True)}, "arm")
        return experiment.analyze(aggregates, control=control, all_variants=True)


def _holm(results: Any) -> Any:
    """Return the results with Holm's correction over the pairs, one metric at a time."""
    adjusted: dict[Any, dict[str, Any]] = {pair: {} for pair in results}
    for metric in METRICS:
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


def _pair_figures(result: Any, name: str, n: int) -> dict[str, Figure]:
    figures = {}
    for key, metric in METRICS.items():
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


def _verdict(treatment: str, control: str, lift: Figure, model: Figure | None, doubts: list[str]) -> str:
    value = lift["value"]
    seen = "no lift can be given" if value is None else f"{value:+.2%} clicks per visit"
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


def _judge(views: npt.NDArray[np.float64] | None) -> str:
    if views is None:
        return "a world whose truth is known: nothing but the drawing of shoppers is uncertain"
    return (
        f"shoppers learned from a log, {views.shape[1]} models: a simulation, not a measurement on real shoppers; "
        "where the log has few clicks it draws lifts towards zero, so look at their sign, not their size"
    )


def _check(arms: Sequence[Strategy], world: World, shoppers: int, seed: int) -> None:
    names = [arm.name for arm in arms]
    if len(names) < 2:
        raise InputError("an A/B test compares two or more arms", where="arms", got=names, expected="2 or more")
    for i, (name, arm) in enumerate(zip(names, arms, strict=True)):
        if name in names[:i]:
            raise InputError("two arms have one name", where="arms", got=name, expected="names that differ")
        if arm.size != world.size:
            expected = f"{world.size}, as the world's pages"
            raise InputError("slates of another size", where=f"arm {name}", got=arm.size, expected=expected)
    least = MIN_SHOPPERS * len(names)
    if isinstance(shoppers, bool) or not isinstance(shoppers, int) or shoppers < least:
        expected = f"an integer of at least {least}, {MIN_SHOPPERS} for each arm"
        raise InputError("bad number of shoppers", where="shoppers", got=shoppers, expected=expected)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError("bad seed", where="seed", got=seed, expected="an integer of at least 0")
