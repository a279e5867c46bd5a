"""``hawker demo``: the whole way on real logs, then the whole strategy in a shop whose truth is known."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hawker.agents.config import TrainConfig
from hawker.agents.train import train
from hawker.app.demo_bazaar import NO_WRITER, BazaarConfig, Clock, bazaar_demo, find_writer
from hawker.app.reports import print_ab, print_fidelity, print_ope, progress_bar
from hawker.app.tables import console, figure_table, heading, say, text_table
from hawker.benchmarks.abtest import ab_test
from hawker.benchmarks.arms import load_arm
from hawker.benchmarks.evaluation import evaluate
from hawker.policies.bundle import Bundle, decide_request
from hawker.policies.export import export_bundle
from hawker.policies.trained import TrainedStrategy
from hawker.shop.artefacts import write_json
from hawker.shop.checks import check_logs
from hawker.shop.devices import choose_threads
from hawker.shop.figures import Figure
from hawker.shop.importers import Campaign, import_obd, shipped
from hawker.shop.run import Run
from hawker.simulators.config import FitConfig
from hawker.simulators.fidelity import mean_figure
from hawker.simulators.fit import fit
from hawker.simulators.store import load_shoppers

SHOPPERS = 100_000
"""Simulated shoppers of the A/B test."""

LATENCY_REQUESTS = 100
"""Decisions whose time is measured."""


def demo(
    logs: Path | None,
    campaign: Campaign,
    run: Run,
    seed: int,
    writer: str = NO_WRITER,
    bazaar: BazaarConfig | None = None,
) -> dict[str, Any]:
    """Go the whole way on logged clicks, then the whole strategy's in a gold world; write ``summary.json`` to the run.

    Args:
        logs: Folder of the Open Bandit Dataset; None takes the sample that ships with Hawker.
        campaign: Its campaign.
        run: Where everything goes; the second part's own run is RUN/bazaar.
        seed: Decides everything that is drawn.
        writer: The language model of the second part, "none" for none; one of those that Hawker fetches may be missing.
        bazaar: How much the second part does.

    Returns:
        The summary: that of ``open_bandit``, with ``bazaar`` (that of ``bazaar_demo``), ``seed``, ``seconds``, and
        ``stages``, the seconds of each.
    """
    started, clock, model = time.perf_counter(), Clock(), find_writer(writer)
    choose_threads()
    with clock.stage("open bandit"):
        summary = open_bandit(logs, campaign, run, seed)
    summary["bazaar"] = bazaar_demo(Run(run.path / "bazaar"), seed, model, clock, bazaar)
    stages = [(name, *(f"{part[kind]:,.0f}" for kind in ("wall", "cpu"))) for name, part in clock.seconds.items()]
    console().print()
    console().print(text_table("What took how long", ("stage", "seconds", "of one core"), stages, right=(1, 2)))
    summary |= {"seed": seed, "stages": clock.seconds, "seconds": round(time.perf_counter() - started, 1)}
    write_json(run.path / "summary.json", summary)
    say(f"{run.path / 'summary.json'}, {summary['seconds']:.0f} s")
    return summary


def open_bandit(logs: Path | None, campaign: Campaign, run: Run, seed: int) -> dict[str, Any]:
    """Import, check, fit, train, estimate, test, export and decide.

    Shoppers are learned from the log of the uniformly random strategy. The log of the shop's own strategy, Bernoulli
    Thompson sampling, serves as something to compare with: its clone is estimated off-policy from the random log, and
    beside it stands what it really earned.

    Args:
        logs: Folder of the Open Bandit Dataset; None takes the sample that ships with Hawker.
        campaign: Its campaign.
        run: Where everything goes.
        seed: Decides everything that is drawn.

    Returns:
        The summary, by part.
    """
    screen, source = console(), logs or shipped("obd")
    data: dict[str, Any] = {"figures": {}}
    heading("1. Logs", f"Open Bandit Dataset, campaign {campaign}: {'the shipped sample' if logs is None else source}")
    for strategy in ("random", "bts"):
        path = run.path / "logs" / strategy
        report = import_obd(source, path, strategy=strategy, campaign=campaign)
        checked = check_logs(path)
        data[strategy] = {**checked.to_dict(), "quarantined": report.quarantined}
        data["figures"] |= {f"{strategy}.{name}": value for name, value in data[strategy].pop("figures").items()}
        rows = [(finding.level, finding.name, finding.text) for finding in checked.findings]
        screen.print(text_table(f"{strategy} strategy", ("level", "what", "finding"), rows))

    heading("2. Shoppers", "learned from the random strategy's log")
    with screen.status("fitting") as status:
        _, fidelity = fit(run.path / "logs" / "random", run.shoppers, FitConfig(seed=seed), status.update)
    print_fidelity(fidelity)

    heading("3. Strategy", "PPO against the learned shoppers")
    with progress_bar("pages") as update:
        _, trained = train(run, TrainConfig(seed=seed), resume=False, progress=update)
    screen.print(figure_table("In the world it was trained in (an upper bound)", trained["figures"]))

    heading("4. Off-policy", "what the rows that nothing was trained on say")
    shoppers = load_shoppers(run.shoppers, torch.device("cpu"))  # `fit` and `train` may have used a GPU
    clone = f"clone:{run.path / 'logs' / 'bts'}"
    arms = [load_arm(name, shoppers, run) for name in ("random", clone, "trained")]
    arms[1].name = "bts-clone"
    ope = evaluate(shoppers, arms, seed=seed)
    print_ope(ope)

    heading("5. Simulated A/B", "fresh shoppers of the judge, learned from other rows than the strategy's shoppers")
    ab = ab_test(arms, shoppers.world("judge"), shoppers=SHOPPERS, seed=seed)
    print_ab(ab)

    heading("6. Bundle", "what a serving process needs, without torch")
    bundle_path = run.path / "bundle"
    bundle = export_bundle(TrainedStrategy.load(run.policy, torch.device("cpu")), bundle_path)
    screen.print(figure_table(str(bundle_path), bundle["figures"]))
    request = example_request(shoppers.read_part("estimate").iloc[0], shoppers.builder.shopper.columns)
    write_json(run.path / "context.json", request)
    served = Bundle.load(bundle_path)
    decision = decide_request(served, request, str(run.path / "context.json"), seed)
    say(f"hawker decide {bundle_path} --context {run.path / 'context.json'} --seed {seed}")
    say(json.dumps(decision))
    decision["figures"] = {"latency": latency(served, request, seed)}

    judgement = verdict(ope, ab)
    heading("Verdict", judgement["text"])
    for reason in judgement["because"]:
        screen.print(f"- {reason}")
    return {
        "data": data,
        "fidelity": fidelity,
        "train": trained,
        "ope": ope,
        "ab": ab,
        "bundle": bundle,
        "decide": decision,
        "verdict": judgement,
    }


def example_request(row: Any, columns: list[str]) -> dict[str, Any]:
    """Return the context of a logged impression as a serving request, for the features in ``columns``."""
    known = row[row.notna()]  # JSON has no NaN; what is left out counts as unknown
    shopper = {name: known[name] for name in columns if name in known.index}
    affinity = {
        name.removeprefix("affinity."): float(known[name])
        for name in known.index
        if name.startswith("affinity.") and known[name]
    }
    shopper = {name: value.item() if hasattr(value, "item") else value for name, value in shopper.items()}
    return {"timestamp": row["timestamp"].isoformat(), "shopper": shopper, "affinity": affinity}


def latency(bundle: Bundle, request: dict[str, Any], seed: int) -> Figure:
    """Return the mean time of a decision, from request to slate, with its 95% interval."""
    times = []
    for _ in range(LATENCY_REQUESTS):
        started = time.perf_counter()
        decide_request(bundle, request, "request", seed)
        times.append(1e3 * (time.perf_counter() - started))
    return mean_figure(np.array(times), None, "milliseconds")


def verdict(ope: dict[str, Any], ab: dict[str, Any]) -> dict[str, Any]:
    """Say whether the trained strategy can be told from the random one, as the intervals have it.

    It takes both kinds of evidence, pointing the same way: the off-policy difference on logged clicks, and the
    simulated test with the uncertainty of its models.

    Returns:
        ``text``, ``distinguishable``, the reasons ``because``, and the ``figures`` they stand on.
    """
    because = []
    signs = []
    difference = ope["figures"].get("dr.trained_minus_random")
    if difference is None:
        refused = ope["refused"].get("trained") or ope["refused"].get("random")
        because.append(f"off-policy: no estimate: {refused}")
        signs.append(0)
    else:
        low, high = difference["low"], difference["high"]
        seen = f"{difference['value']:+.4f} clicks per impression [{low:+.4f}, {high:+.4f}]"
        because.append(f"off-policy: trained minus random is {seen}")
        signs.append(1 if low > 0 else -1 if high < 0 else 0)
    pair = next(pair for pair in ab["pairs"] if pair["treatment"] == "trained")
    because.append(f"simulated: {pair['verdict']}")
    names = (f"pair.trained.{ab['deciding_metric']}_lift", "pair.trained.model_lift")
    lift = ab["figures"][names[0]]["value"] or 0.0
    figures = {name: ab["figures"][name] for name in names if name in ab["figures"]}
    if difference is not None:
        figures["dr.trained_minus_random"] = difference
    signs.append((1 if lift > 0 else -1) if pair["distinguishable"] else 0)
    if signs == [1, 1]:
        text = "trained is better than random: logged clicks and simulated shoppers agree"
    elif signs == [-1, -1]:
        text = "trained is worse than random: logged clicks and simulated shoppers agree"
    else:
        text = "trained and random are not distinguishable on these logs"
    return {"distinguishable": abs(sum(signs)) == 2, "text": text, "because": because, "figures": figures}
