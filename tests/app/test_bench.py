import dataclasses
import math
import shlex
from pathlib import Path
from typing import Any

import pytest

from hawker.agents.config import TrainConfig
from hawker.app.bench import (
    machine,
    run_constraints,
    run_exploits,
    run_leaderboard,
    run_pareto,
    run_search,
    run_signal,
    run_speed,
    run_why,
    run_writer,
)
from hawker.app.cli import _parse
from hawker.benchmarks import constraints, exploits, leaderboard, pareto, search, speed, why, writer
from hawker.benchmarks.signal import SignalConfig
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.simulators.config import FitConfig, PlantedEffects


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, SignalConfig, int]]:
    """The benchmarks that were run, without running them: logs, config, impressions in the logs."""
    ran: list[tuple[Path, SignalConfig, int]] = []

    def bench_signal(logs: Path, config: SignalConfig, progress: Any) -> dict[str, Any]:
        impressions = read_logs(logs).impressions
        assert impressions is not None
        ran.append((logs, config, len(impressions)))
        progress("went")
        return {"figures": {}, "seeds": list(config.seeds), "seconds": 1.0}

    monkeypatch.setattr("hawker.app.bench.bench_signal", bench_signal)
    return ran


def test_logs_of_one_s_own(finished: Path, seen: list[tuple[Path, SignalConfig, int]]):
    said: list[str] = []
    report = run_signal(finished / "logs", 900, 0.1, (1, 2), 4, False, said.append)
    assert seen == [(finished / "logs", SignalConfig(900, (1, 2), 4, PlantedEffects(ctr=0.1)), 1_500)]
    assert set(report) == {"figures", "seeds", "seconds", "machine", "command"}
    assert said == ["went"]


def test_the_shipped_sample_is_the_default(seen: list[tuple[Path, SignalConfig, int]]):
    run_signal(None, 900, 0.1, (1, 2), 4, False, print)
    ((logs, _, n),) = seen
    assert n == 10_000
    assert not logs.exists()  # a scratch copy


def test_quick_is_small(seen: list[tuple[Path, SignalConfig, int]]):
    run_signal(None, 200_000, 0.03, (11, 12, 13), 100, True, print)
    ((_, config, _),) = seen
    assert config.effects == PlantedEffects(ctr=0.03)
    assert (config.seeds, config.repeats) == ((11,), 5)
    assert config.impressions <= 50_000
    assert config.fit.epochs < FitConfig().epochs
    assert config.train.steps < TrainConfig().steps


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_the_command_in_the_report_makes_the_same_report(
    home: Path, seen: list[tuple[Path, SignalConfig, int]], quick: bool, own: bool
):
    logs = home / "logs of mine" if own else None
    (home / "logs").rename(home / "logs of mine")
    report = run_signal(logs, 900, 0.1, (1, 2), 4, quick, print)
    words = shlex.split(report["command"])
    assert words[:3] == ["hawker", "bench", "signal"]
    _parse("bench signal", words[3:]).run()
    (first, config, _), (second, again, _) = seen
    assert again == config
    assert not own or first == second == logs


def test_bad_options_are_named(finished: Path):
    with pytest.raises(InputError) as caught:
        run_signal(finished / "logs", 900, math.nan, (1,), 4, False, print)
    assert str(caught.value) == "signal.ctr: not a click rate; got nan, expected between 0 and 1"


def test_the_machine_is_described():
    found = machine(1)
    assert found["torch_threads"] == 1
    assert found["cores"] >= 1
    assert found["processor"]
    assert set(found) == {"processor", "cores", "torch_threads", "gpu"}


@pytest.mark.parametrize(("quick", "own"), [(False, False), (True, True)])
def test_speed_is_timed_as_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quick: bool, own: bool):
    asked: list[speed.SpeedConfig] = []

    def bench_speed(config: speed.SpeedConfig, told: Any) -> dict[str, Any]:
        asked.append(config)
        return {"figures": {}, "load": {"before": [0.5, 0, 0], "after": [1.0, 0, 0]}, "seeds": [0], "seconds": 1.0}

    monkeypatch.setattr("hawker.benchmarks.speed.bench_speed", bench_speed)
    report = run_speed(tmp_path if own else None, quick, print)
    assert asked == [
        dataclasses.replace(speed.QUICK if quick else speed.SpeedConfig(), shoppers=tmp_path if own else None)
    ]
    assert {"figures", "load", "seeds", "seconds", "machine", "command"} == set(report)
    again = _parse("bench speed", shlex.split(report["command"])[3:])
    assert (again.quick, again.shoppers) == (quick, tmp_path if own else None)


@pytest.mark.parametrize("quick", [False, True])
def test_constraints_are_run_as_they_were_asked_for(quick: bool, monkeypatch: pytest.MonkeyPatch):
    ran: list[constraints.ConstraintsConfig] = []

    def bench_constraints(config: constraints.ConstraintsConfig, told: Any) -> dict[str, Any]:
        ran.append(config)
        return {"figures": {}, "seeds": list(config.seeds), "details": []}

    monkeypatch.setattr("hawker.app.bench.constraints.bench_constraints", bench_constraints)
    report = run_constraints((4, 5), quick, print)
    whole = constraints.ConstraintsConfig(seeds=(4, 5))
    assert ran == [dataclasses.replace(constraints.QUICK, seeds=(4,)) if quick else whole]
    asked = _parse("bench constraints", shlex.split(report["command"])[3:])
    assert (asked.quick, asked.seeds) == (quick, ran[0].seeds)


def test_a_sweep_is_run_as_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ran: list[pareto.ParetoConfig] = []

    def bench_pareto(config: pareto.ParetoConfig, told: Any) -> dict[str, Any]:
        ran.append(config)
        return {"figures": {}, "seeds": list(config.seeds), "arms": {}, "notes": [], "details": []}

    monkeypatch.setattr("hawker.app.bench.pareto.bench_pareto", bench_pareto)
    report = run_pareto((4, 5), None, False, tmp_path / "new" / "front.html", print)
    assert ran == [pareto.ParetoConfig(seeds=(4, 5))]
    assert (tmp_path / "new").is_dir(), "there will be a place for the page"
    asked = _parse("bench pareto", shlex.split(report["command"])[3:])
    assert (asked.seeds, asked.steps, asked.quick) == ((4, 5), ran[0].train.steps, False)
    quick = run_pareto((4, 5), 2048, True, None, print)
    assert ran[1] == dataclasses.replace(
        pareto.QUICK, seeds=(4,), train=dataclasses.replace(pareto.QUICK.train, steps=2048)
    )
    assert shlex.split(quick["command"])[3:] == ["--quick", "--steps", "2048", "--seeds", "4"]
    with pytest.raises(InputError, match="too few pages to learn from; got 300000, expected more than 300000"):
        run_pareto((4,), 300_000, False, None, print)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="charts need plotly"):
        run_pareto((4,), None, True, tmp_path / "front.html", print)


@pytest.mark.parametrize("quick", [False, True])
def test_exploits_are_run_as_they_were_asked_for(quick: bool, monkeypatch: pytest.MonkeyPatch):
    ran: list[exploits.ExploitsConfig] = []

    def bench_exploits(config: exploits.ExploitsConfig, told: Any) -> dict[str, Any]:
        ran.append(config)
        return {"figures": {}, "seeds": list(config.seeds), "details": []}

    monkeypatch.setattr("hawker.app.bench.exploits.bench_exploits", bench_exploits)
    report = run_exploits((4, 5), quick, print)
    whole = exploits.ExploitsConfig(seeds=(4, 5))
    assert ran == [dataclasses.replace(exploits.QUICK, seeds=(4,)) if quick else whole]
    asked = _parse("bench exploits", shlex.split(report["command"])[3:])
    assert (asked.quick, asked.seeds) == (quick, ran[0].seeds)


@pytest.mark.parametrize("quick", [False, True])
def test_the_writer_is_trained_as_it_was_asked_for(quick: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    ran: list[tuple[writer.WriterConfig, bool, Path | None]] = []

    def bench_writer(config: writer.WriterConfig, told: Any, *, ablations: bool, keep: Path | None) -> dict[str, Any]:
        ran.append((config, ablations, keep))
        return {"figures": {}, "seeds": list(config.seeds), "samples": [], "details": []}

    monkeypatch.setattr("hawker.benchmarks.writer.bench_writer", bench_writer)
    keep = None if quick else Path("writers")
    page = tmp_path / "pages" / "writer.html" if quick else None
    report = run_writer("tiny", (4, 5), quick, quick, keep, page, print)
    whole = writer.WriterConfig(model="tiny", seeds=(4, 5))
    assert ran == [(dataclasses.replace(writer.QUICK, model="tiny", seeds=(4,)) if quick else whole, quick, keep)]
    asked = _parse("bench writer", shlex.split(report["command"])[3:])
    assert (asked.model, asked.quick, asked.ablations, asked.seeds) == ("tiny", quick, quick, ran[0][0].seeds)
    assert page is None or page.parent.is_dir(), "there will be a place for the page"


@pytest.mark.parametrize("quick", [False, True])
def test_reasons_are_removed_as_it_was_asked_for(quick: bool, monkeypatch: pytest.MonkeyPatch):
    ran: list[why.WhyConfig] = []

    def bench_why(config: why.WhyConfig, told: Any) -> dict[str, Any]:
        ran.append(config)
        return {"figures": {}, "seeds": list(config.seeds), "details": []}

    monkeypatch.setattr("hawker.app.bench.why.bench_why", bench_why)
    report = run_why((4, 5), quick, print)
    assert ran == [dataclasses.replace(why.QUICK, seeds=(4,)) if quick else why.WhyConfig(seeds=(4, 5))]
    asked = _parse("bench why", shlex.split(report["command"])[3:])
    assert (asked.quick, asked.seeds) == (quick, ran[0].seeds)


@pytest.mark.parametrize("quick", [False, True])
def test_what_is_typed_is_searched_for_as_it_was_asked_for(quick: bool, monkeypatch: pytest.MonkeyPatch):
    ran: list[search.SearchConfig] = []

    def bench_search(config: search.SearchConfig, told: Any) -> dict[str, Any]:
        ran.append(config)
        return {"figures": {}, "seeds": list(config.seeds), "arms": {}, "details": []}

    monkeypatch.setattr("hawker.app.bench.search.bench_search", bench_search)
    report = run_search("box.yaml", (4, 5), quick, print)
    config = dataclasses.replace(search.QUICK, seeds=(4,)) if quick else search.SearchConfig(seeds=(4, 5))
    assert ran == [dataclasses.replace(config, variant="box.yaml")]
    asked = _parse("bench search", shlex.split(report["command"])[3:])
    assert (asked.variant, asked.quick, asked.seeds) == ("box.yaml", quick, ran[0].seeds)


def test_writing_needs_trl(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="the writer needs trl"):
        run_writer("tiny", (4,), True, False, None, None, print)


def test_the_leaderboard_is_run_as_it_was_asked_for(monkeypatch: pytest.MonkeyPatch):
    ran: list[leaderboard.LeaderboardConfig] = []

    def bench_leaderboard(config: leaderboard.LeaderboardConfig, told: Any) -> dict[str, Any]:
        ran.append(config)
        return {"figures": {}, "seeds": list(config.seeds), "arms": {}, "details": []}

    monkeypatch.setattr("hawker.app.bench.leaderboard.bench_leaderboard", bench_leaderboard)
    report = run_leaderboard(("base", "cascade"), (4, 5), 1000, False, print)
    assert (ran[0].variants, ran[0].seeds, ran[0].train.steps) == ((None, "cascade"), (4, 5), 1000)
    asked = _parse("bench leaderboard", shlex.split(report["command"])[3:])
    assert (asked.variants, asked.seeds, asked.steps, asked.quick) == (("base", "cascade"), (4, 5), 1000, False)
    usual = run_leaderboard(("base",), (4,), None, False, print)
    assert ran[1].train == leaderboard.LeaderboardConfig().train
    assert f"--steps {ran[1].train.steps} " in usual["command"]
    quick = run_leaderboard(("base",), (4, 5), 1000, True, print)
    assert ran[2] == dataclasses.replace(leaderboard.QUICK, seeds=(4,))
    assert shlex.split(quick["command"])[3:] == ["--quick", "--seeds", "4"]
    with pytest.raises(InputError, match="no pages to learn from"):
        run_leaderboard(("base",), (4,), 0, False, print)
