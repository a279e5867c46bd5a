import json
from pathlib import Path
from typing import Any

import pytest

from hawker.app.bench_commands import (
    BENCHES,
    BenchBackbone,
    BenchEmbeddings,
    BenchFidelity,
    BenchPareto,
    BenchSpeed,
    BenchWriter,
)
from hawker.app.commands import COMMANDS
from hawker.shop.errors import InputError
from hawker.shop.figures import figure


def test_every_benchmark_is_a_command():
    assert {name: COMMANDS[name] for name in BENCHES} == BENCHES
    assert all(name.startswith("bench ") for name in BENCHES)


def test_speed_prints_its_figures_and_how_loaded_the_machine_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def run_speed(shoppers: Path | None, quick: bool, progress: Any) -> dict[str, Any]:
        assert (shoppers, quick) == (tmp_path, True)
        steps = figure(120_000.0, 118_000.0, 121_000.0, 15, "user-steps per second")
        return {"figures": {"env.user_steps_per_s": steps}, "load": {"before": [0.25, 0, 0], "after": [1.5, 0, 0]}}

    monkeypatch.setattr("hawker.app.bench.run_speed", run_speed)
    BenchSpeed(tmp_path, True, tmp_path / "speed.json").run()
    printed = capsys.readouterr().out
    assert "env.user_steps_per_s" in printed
    assert "load average 0.25 before, 1.50 after" in printed
    assert json.loads((tmp_path / "speed.json").read_text())["load"]["after"][0] == 1.5


def test_a_sweep_prints_its_front_and_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rate = figure(0.2, 0.19, 0.21, 2, "probability")
    arm = {"front": True, "front_seeds": 2, "gold": {"ctr": rate, "cvr": rate, "d7": rate}}
    report = {
        "arms": {"clicks + returns": arm},
        "figures": {"pareto.hypervolume": rate},
        "notes": ["one point costs 3%"],
    }
    monkeypatch.setattr("hawker.app.bench.run_pareto", lambda *asked: report)
    BenchPareto().run()
    printed = capsys.readouterr().out
    assert "clicks + returns" in printed
    assert "yes" in printed
    assert "20.000%  [19.000%, 21.000%]" in printed
    assert "- one point costs 3%" in printed


@pytest.mark.parametrize(
    ("command", "kind"), [(BenchFidelity, "fidelity"), (BenchPareto, "pareto"), (BenchWriter, "writer")]
)
def test_the_report_is_there_before_its_page_is_drawn(
    command: Any, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """What took an hour and more is not lost where drawing fails."""
    path, page = tmp_path / "report.json", tmp_path / "page.html"
    arm = {"front": True, "front_seeds": 1, "gold": {}}
    report = {"figures": {}, "arms": {"any": arm}, "notes": [], "samples": []}

    def fails(told: Any, where: Path) -> None:
        assert (json.loads(path.read_text()), told, where) == (report, report, page)
        raise InputError("cannot be drawn")

    monkeypatch.setattr(f"hawker.app.bench.run_{kind}", lambda *asked: report)
    monkeypatch.setattr(f"hawker.app.{kind}_page.write_page", fails)
    with pytest.raises(InputError, match="cannot be drawn"):
        command(html=page, json=path).run()


def test_the_writers_page_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    report = {"figures": {}, "seeds": [4], "samples": [], "details": []}
    monkeypatch.setattr("hawker.app.bench.run_writer", lambda *asked: report)
    BenchWriter(html=tmp_path / "page.html").run()
    assert "The writer" in (tmp_path / "page.html").read_text()


def test_encodings_are_told_pool_by_pool_and_a_tie_as_a_tie(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def run_embeddings(model: str, seeds: tuple[int, ...], quick: bool, progress: Any) -> dict[str, Any]:
        assert (model, seeds, quick) == ("small", (4, 5), False)
        gain = figure(0.4, -0.1, 0.9, 2, "reward a shopper")
        arms = {pool: {"ppo, tfidf": {"reward": value}} for pool, value in (("new", 51.25), ("known", 62.5))}
        return {"figures": {"strategist.cold_item_gain_tfidf": gain}, "arms": arms, "notes": ["new items: a tie"]}

    monkeypatch.setattr("hawker.app.bench.run_embeddings", run_embeddings)
    BenchEmbeddings("small", (4, 5), json=tmp_path / "report.json").run()
    printed = capsys.readouterr().out
    for said in ("51.25", "62.5", "[-0.1, 0.9]", "- new items: a tie"):
        assert said in printed
    assert printed.index("51.25") < printed.index("62.5"), "pool by pool"
    assert json.loads((tmp_path / "report.json").read_text())["notes"] == ["new items: a tie"]


def test_a_tuned_backbone_is_told_pool_by_pool_with_what_the_judge_keeps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def run_backbone(model: str, seeds: tuple[int, ...], quick: bool, progress: Any) -> dict[str, Any]:
        assert (model, seeds, quick) == ("small", (4,), True)
        gain = figure(0.4, None, None, 1, "reward a shopper")
        arms = {pool: {"tuned": {"reward": value}} for pool, value in (("known", 62.5), ("new", 51.25))}
        return {"figures": {"known.tuned_minus_frozen": gain}, "arms": arms, "notes": ["seed 4: frozen is kept"]}

    monkeypatch.setattr("hawker.app.bench.run_backbone", run_backbone)
    BenchBackbone("small", (4,), True, tmp_path / "report.json").run()
    printed = capsys.readouterr().out
    for said in ("62.5", "51.25", "known.tuned_minus_frozen", "- seed 4: frozen is kept"):
        assert said in printed
    assert json.loads((tmp_path / "report.json").read_text())["notes"] == ["seed 4: frozen is kept"]
