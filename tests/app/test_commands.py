"""Every command once, in this process, on a small shop."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from hawker.app.cli import main
from hawker.app.commands import COMMANDS, CONFIGS
from hawker.benchmarks.ope import ESTIMATORS
from hawker.shop.importers import shipped
from hawker.shop.logs import read_logs


def hawker(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def figures_of(path: Path) -> dict[str, Any]:
    """Read a report; its figures are well formed."""
    report = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["figures"]
    for name, seen in report["figures"].items():
        assert set(seen) == {"value", "low", "high", "n", "unit"}, name
        assert isinstance(seen["n"], int), name
        assert isinstance(seen["unit"], str), name
        assert seen["unit"], name
        if seen["low"] is not None:
            assert seen["low"] <= seen["value"] <= seen["high"], name
        for edge in ("value", "low", "high"):
            assert seen[edge] is None or math.isfinite(seen[edge]), name
    return report


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_every_command_begins_with_what_it_does():
    for name, command in COMMANDS.items():
        first = (command.__doc__ or "").splitlines()[0]
        assert first.endswith("."), name
        assert len(first) <= 100, name
    assert set(CONFIGS) <= set(COMMANDS)


# Logs


def test_logs_import_of_the_open_bandit_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "logs"
    hawker("logs", "import", "obd", shipped("obd"), out, "--campaign", "men", "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == {"format": "obd", "rows": 10_000, "quarantined": 0}
    logs = read_logs(out)
    assert logs.impressions is not None
    assert len(logs.impressions) == 10_000
    printed = capsys.readouterr().out
    assert "impressions  10,000" in printed
    assert "- propensity: P(item | position)" in printed


@pytest.mark.parametrize("strategy", ["random", "bts"])
def test_logs_import_takes_the_strategy_that_is_named(tmp_path: Path, strategy: str):
    hawker("logs", "import", "obd", shipped("obd"), tmp_path / "logs", "--strategy", strategy)
    assert json.loads((tmp_path / "logs" / "meta.json").read_text())["source"]["strategy"] == strategy
    logs = read_logs(tmp_path / "logs")
    assert logs.impressions is not None
    assert (logs.impressions["propensity"].nunique() == 1) == (strategy == "random")


@pytest.mark.parametrize(("option", "customers"), [("--sample", 2_357), ("--no-sample", 23_570)])
def test_logs_import_of_cdnow(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, customers: int):
    hawker("logs", "import", "cdnow", shipped("cdnow"), tmp_path / "logs", option)
    events = read_logs(tmp_path / "logs").events
    assert events is not None
    assert events["shopper_id"].nunique() == customers
    assert ["events", f"{len(events):,}"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_logs_check(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hawker("logs", "check", finished / "logs", "--json", tmp_path / "check.json")
    report = figures_of(tmp_path / "check.json")
    assert report["level"] in ("ok", "warn")
    assert report["figures"]["impressions.rows"]["value"] == 1_500
    assert report["figures"]["ctr"]["low"] < 0.15 < report["figures"]["ctr"]["high"]
    printed = capsys.readouterr().out
    assert "all 1,500 rows keep the contract" in printed


def test_logs_check_clean_moves_bad_rows(tmp_path: Path, tables, write_tables, capsys: pytest.CaptureFixture[str]):
    impressions, items = tables
    clicked = impressions["clicked"].to_numpy().copy()
    clicked[[3, 8]] = 2
    logs = write_tables(tmp_path / "logs", impressions=impressions.assign(clicked=clicked), items=items)
    hawker("logs", "check", logs, "--clean", tmp_path / "clean")
    assert "2 rows in quarantine" in capsys.readouterr().out
    good = read_logs(tmp_path / "clean").impressions
    assert good is not None
    assert len(good) == 1_498
    hawker("logs", "check", tmp_path / "clean")


# From logs to a strategy


def test_fit_writes_shoppers_with_their_config(home: Path, capsys: pytest.CaptureFixture[str]):
    out, words = home / "other" / "shoppers", ("--config", home / "fit.yaml", "--epochs", 2, "--json", home / "f.json")
    hawker("fit", home / "logs", "--out", out, *words)
    report = figures_of(home / "f.json")
    assert json.loads((out / "fidelity.json").read_text()) == report
    names = {f"{what}.{who}" for what in ("log_loss", "calibration") for who in ("constant", "logistic", "judge")}
    assert names <= set(report["figures"])
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["members"], config["epochs"], config["batch"]) == (2, 2, 2048)  # file, option, default
    printed = capsys.readouterr().out
    assert "The log, split by time" in printed
    assert f"shoppers: {out}\n" in printed  # not broken, however long


def test_fit_of_events_alone_learns_when_shoppers_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    generator = np.random.default_rng(0)
    who, week = np.nonzero(generator.random((40, 13)) < np.where(np.arange(40) % 2, 0.6, 0.1)[:, None])
    days = pd.to_timedelta(7 * week + generator.integers(7, size=len(week)), unit="D")
    events = pd.DataFrame(
        {"shopper_id": [f"s{i}" for i in who], "timestamp": pd.Timestamp("2026-01-05", tz="UTC") + days}
    )
    (tmp_path / "logs").mkdir()
    events.assign(kind="purchase").to_parquet(tmp_path / "logs" / "events.parquet")
    out, report = tmp_path / "run" / "shoppers", tmp_path / "fit.json"
    hawker("fit", tmp_path / "logs", "--out", out, "--seed", 5, "--device", "cpu", "--json", report)
    assert figures_of(report) == json.loads((out / "fidelity.json").read_text())
    assert yaml.safe_load((out / "config.yaml").read_text())["seed"] == 5
    printed = capsys.readouterr().out
    for line in ("Forecasts of a time that no model has seen", "rmse.model_minus_frequency", "- return: learned"):
        assert line in printed
    assert f"return model: {out}\n" in printed
    assert main(["train", str(tmp_path / "run")]) == 2
    assert "a directory of another kind; got 'returns', expected shoppers" in capsys.readouterr().err


def test_fit_says_the_same_again(home: Path):
    for name in ("one", "two"):
        hawker("fit", home / "logs", "--out", home / name, "--config", home / "fit.yaml")
    assert files(home / "one") == files(home / "two")


def test_train_writes_a_policy_with_its_config(home: Path, capsys: pytest.CaptureFixture[str]):
    hawker("train", home / "run", "--config", home / "train.yaml", "--click", 2, "--json", home / "t.json")
    report = figures_of(home / "t.json")
    assert report["steps"] == 2_048
    assert report["seed"] == 0
    assert set(report["figures"]) == {"reward.random", "reward.trained"}
    config = yaml.safe_load((home / "run" / "policy" / "config.yaml").read_text())
    assert (config["steps"], config["reward"]["click"]) == (2_048, 2.0)
    printed = capsys.readouterr().out
    assert "an upper bound" in printed
    assert f"policy: {home / 'run' / 'policy'}\n" in printed


def test_train_resumes_where_it_stopped(home: Path, finished: Path):
    """Twice as many pages in one go, or in two."""
    words = ("--config", home / "train.yaml", "--steps", 4_096)
    hawker("train", home / "run", *words, "--resume", "--json", home / "t.json")
    assert json.loads((home / "t.json").read_text())["steps"] == 4_096
    resumed = (home / "run" / "policy" / "actor.safetensors").read_bytes()
    assert resumed != (finished / "run" / "policy" / "actor.safetensors").read_bytes()
    hawker("train", home / "run", *words)
    assert (home / "run" / "policy" / "actor.safetensors").read_bytes() == resumed


# Worth


def test_ope_by_row(home: Path, capsys: pytest.CaptureFixture[str]):
    policies = [word for name in ("random", "popularity", "clone", "trained") for word in ("--policy", name)]
    hawker("ope", home / "run", *policies, "--force", "--json", home / "ope.json")
    report = figures_of(home / "ope.json")
    names = {f"{e}.{s}" for e in ESTIMATORS for s in ("random", "popularity", "clone", "trained")}
    differences = {f"dr.{s}_minus_random" for s in ("popularity", "clone", "trained")}
    assert set(report["figures"]) == names | differences | {"logged"}
    assert report["figures"]["ips.random"]["value"] == pytest.approx(report["figures"]["logged"]["value"])
    assert set(report["diagnostics"]) == {"random", "popularity", "clone", "trained"}
    printed = capsys.readouterr().out
    assert "Can the log tell?" in printed
    assert "300 of 300" in printed
    assert "dr.trained_minus_random" in printed
    assert "sndr.trained" not in printed  # people are shown a few, the report has all
    assert "- one row is one item at one position; positions are assumed to add up" in printed


def test_ope_compares_random_and_trained_unless_told(home: Path):
    hawker("ope", home / "run", "--json", home / "ope.json")
    assert set(json.loads((home / "ope.json").read_text())["diagnostics"]) == {"random", "trained"}


def test_ope_with_another_seed_has_other_intervals(home: Path):
    reports = []
    for seed in (0, 4):
        hawker("ope", home / "run", "--policy", "random", "--seed", seed, "--json", home / "ope.json")
        reports.append(json.loads((home / "ope.json").read_text()))
    assert [report["seeds"] for report in reports] == [[0], [4]]
    assert reports[0]["figures"]["dr.random"] != reports[1]["figures"]["dr.random"]


def test_ope_takes_runs_and_bundles(home: Path):
    hawker(
        "ope", home / "run", "--policy", "trained", "--policy", home / "bundle", "--force", "--json", home / "ope.json"
    )
    figures = json.loads((home / "ope.json").read_text())["figures"]
    bundle = figures[f"dr.{home / 'bundle'}"]["value"]
    assert bundle == pytest.approx(figures["dr.trained"]["value"], rel=1e-4)


def test_ab(home: Path, capsys: pytest.CaptureFixture[str]):
    words = ("--arms", "random", "popularity", "trained", "--shoppers", 500, "--seed", 3, "--json", home / "ab.json")
    hawker("ab", home / "run", *words)
    report = figures_of(home / "ab.json")
    assert report["arms"] == ["random", "popularity", "trained"]
    assert (report["seed"], report["shoppers"]) == (3, 500)
    assert [pair["treatment"] for pair in report["pairs"]] == ["popularity", "trained"]
    assert "pair.trained.model_lift" in report["figures"]
    printed = capsys.readouterr().out
    assert "Simulated A/B test" in printed
    assert "popularity / random" in printed
    hawker("ab", home / "run", *words)
    assert json.loads((home / "ab.json").read_text()) == report  # the same seed, the same report


# To serving


def test_export_and_decide(home: Path, capsys: pytest.CaptureFixture[str]):
    hawker("export", home / "run", home / "new", "--json", home / "e.json")
    report = figures_of(home / "e.json")
    assert report["figures"]["max_delta_log_prob"]["value"] <= 1e-5
    assert "max_delta_log_prob" in capsys.readouterr().out
    first, again, other = (
        decide(home / "new", home / "context.json", capsys, "--seed", seed) for seed in ("0", "0", "5")
    )
    assert first == again
    assert first["slate"] != other["slate"]
    assert len(set(first["slate"])) == 3
    assert first["log_prob"] == pytest.approx(np.log(first["propensities"]).sum())
    assert first == decide(home / "bundle", home / "context.json", capsys)  # the same policy, the same bundle


def decide(bundle: Path, context: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    hawker("decide", bundle, "--context", context, *words)
    return json.loads(capsys.readouterr().out)


def test_decide_greedily_among_candidates(home: Path, capsys: pytest.CaptureFixture[str]):
    request = {"timestamp": "2026-01-01T12:00:00+09:00", "candidates": ["item-4", "item-2"], "affinity": {"item-2": 1}}
    (home / "context.json").write_text(json.dumps(request))
    answer = decide(home / "bundle", home / "context.json", capsys, "--greedy", "--json", str(home / "d.json"))
    assert json.loads((home / "d.json").read_text()) == answer
    assert sorted(answer["slate"]) == ["item-2", "item-4"]
    assert (answer["empty_slots"], answer["candidates"], answer["drawn"], answer["seed"]) == (1, 2, "greedy", None)


# What is left to the tests of their own modules is checked for its arguments


def test_bench_signal_hands_its_options_over(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    seen: list[Any] = []

    def run_signal(*arguments: Any) -> dict[str, Any]:
        seen.append(arguments[:-1])
        return {"figures": {"click.auc": {"value": 0.7, "low": None, "high": None, "n": 1, "unit": "probability"}}}

    monkeypatch.setattr("hawker.app.bench.run_signal", run_signal)
    words = ("--impressions", 900, "--ctr", 0.1, "--seeds", 1, 2, "--repeats", 4, "--json", tmp_path / "b.json")
    hawker("bench", "signal", "--logs", finished / "logs", *words)
    hawker("bench", "signal", "--quick")
    assert seen[0] == (finished / "logs", 900, 0.1, (1, 2), 4, False)
    assert seen[1] == (None, 200_000, 0.02, (11, 12, 13), 100, True)
    assert figures_of(tmp_path / "b.json")
    assert "70.000%" in capsys.readouterr().out


def test_demo_hands_its_options_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []

    def demo(*arguments: Any) -> dict[str, Any]:
        seen.append(arguments)
        return {"verdict": {}}

    monkeypatch.setattr("hawker.app.demo.demo", demo)
    hawker("demo", "--logs", tmp_path, "--campaign", "women", "--out", tmp_path / "x", "--seed", 7, "--writer", "none")
    hawker("demo", "--json", tmp_path / "d.json")
    (logs, campaign, run, *others), default = seen
    assert (logs, campaign, run.path, *others) == (tmp_path, "women", tmp_path / "x", 7, "none")
    assert (default[0], default[1], default[2].path, *default[3:]) == (
        None,
        "all",
        Path("runs/demo"),
        0,
        "smollm2-135m",
    )
    assert json.loads((tmp_path / "d.json").read_text()) == {"verdict": {}}
