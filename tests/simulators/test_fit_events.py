"""``fit_events`` from a log of purchases to an artefact: measured on a time it has not seen, or not written at all."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hawker.shop.artefacts import read_json, verify_directory
from hawker.shop.config import load_config
from hawker.shop.errors import InputError
from hawker.simulators.config import FitConfig
from hawker.simulators.fit_events import baselines, events_alone, fit_events, forecast_figures, happened
from hawker.simulators.histories import Histories
from hawker.simulators.returning import ReturnConfig, load_returns

CONFIG = FitConfig(device="cpu", seed=3)
QUICK = ReturnConfig(of_each=1, hidden=4, classes=2, steps=5)
FIRST = pd.Timestamp("2026-01-05", tz="UTC")


def silent(line: str) -> None:
    """Report nothing."""


def purchases(shoppers: int = 120, weeks: int = 18, seed: int = 0, kind: str = "purchase") -> pd.DataFrame:
    """Each shopper buys on a day of the first week, then one in three buys in most weeks and the others hardly ever."""
    generator = np.random.default_rng(seed)
    rate = np.where(np.arange(shoppers) % 3 == 0, 0.6, 0.03)
    came = generator.random((shoppers, weeks)) < rate[:, None]
    came[:, 0] = True
    who, week = np.nonzero(came)
    days = 7 * week + generator.integers(7, size=len(week))
    days[0] = 0
    days[np.flatnonzero(week == weeks - 1)[0]] = 7 * weeks - 1
    frame = pd.DataFrame({"shopper_id": [f"s{i}" for i in who], "timestamp": FIRST + pd.to_timedelta(days, unit="D")})
    frame["timestamp"] = frame["timestamp"].dt.as_unit("us")
    return frame.assign(kind=kind, revenue=generator.lognormal(3.0, size=len(frame)))


def write(directory: Path, **tables: pd.DataFrame) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(directory / f"{name}.parquet", index=False)
    return directory


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory):
    """A directory with ``logs`` and ``returns``, the model and its report; not to be changed."""
    home = tmp_path_factory.mktemp("events")
    logs = write(home / "logs", events=purchases())
    return home, *fit_events(logs, home / "returns", CONFIG, silent, QUICK)


def test_what_is_written(fitted):
    home, model, report = fitted
    out = verify_directory(home / "returns", "returns")
    names = {"checksums.json", "config.yaml", "fidelity.json", "returns.json", "returns.safetensors"}
    assert {path.name for path in out.iterdir()} == names
    assert read_json(out / "fidelity.json") == report
    assert load_config(FitConfig, out / "config.yaml") == CONFIG
    assert load_returns(out, next(model.members[0].parameters()).device).config == QUICK
    whole = Histories.from_events(purchases())
    assert report["record"] == {
        "event": "purchase",
        "shoppers": 120,
        "events": int(whole.count.sum()),
        "period_days": 7,
        "periods": 18,
        "to": str(FIRST + pd.Timedelta(weeks=18)),
        "unknown_shopper": 0,
    }
    assert report["held_out"] == {"shoppers": 120, "periods": 6, "from": str(FIRST + pd.Timedelta(weeks=12))}
    assert report["heads"]["return"] == "learned"
    assert report["heads"]["click"].startswith("absent")


def test_figures_are_those_of_the_time_held_out(fitted):
    _, _, report = fitted
    figures = report["figures"]
    names = {
        f"{metric}.{name}" for metric in ("rmse", "auc", "ece", "bias") for name in ("constant", "frequency", "model")
    }
    names |= {f"{metric}.model_minus_{name}" for metric in ("rmse", "auc", "ece") for name in ("constant", "frequency")}
    assert set(figures) == names
    whole = Histories.from_events(purchases())
    came = happened(whole, 12)
    assert came.tolist() == whole.count[:, 12:].sum(1).tolist()
    assert figures["rmse.constant"]["value"] == pytest.approx(
        math.sqrt(np.mean((came - whole.count[:, 6:12].sum(1).mean()) ** 2))
    )
    assert figures["auc.constant"]["value"] == 0.5
    assert figures["auc.constant"]["low"] is None, "what never varies has no interval"
    assert figures["auc.model"]["value"] > 0.75
    assert figures["auc.frequency"]["value"] > 0.8
    assert figures["rmse.frequency"]["value"] < figures["rmse.constant"]["low"]
    difference = figures["auc.model"]["value"] - figures["auc.frequency"]["value"]
    assert figures["auc.model_minus_frequency"]["value"] == pytest.approx(difference)
    for name, seen in figures.items():
        assert seen["n"] == 120
        assert seen["low"] is None or seen["low"] <= seen["value"] <= seen["high"], name


def test_same_seed_same_files(fitted, tmp_path):
    home = fitted[0]
    fit_events(home / "logs", tmp_path / "again", CONFIG, silent, QUICK)
    for path in (home / "returns").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_baselines_know_nothing_of_the_time_they_forecast():
    """The constant is the mean of the last known periods, and the regression ranks by how often and how lately."""
    count = np.zeros((4, 9), np.float32)
    count[:, 0] = 1
    count[0, 1:9] = 1  # often, and lately
    count[1, 1:9:2] = 1
    count[2, 2] = 1
    known = Histories(np.arange(4), count, np.full_like(count, np.nan), np.zeros(4, np.int64), 7, FIRST)
    found = baselines(known, 3)
    assert found["constant"][0] == pytest.approx([(3 + 1 + 0 + 0) / 4] * 4)
    assert found["constant"][1] == pytest.approx([0.5] * 4)
    expected, chance = found["frequency"]
    assert expected.argmax() == chance.argmax() == 0
    assert expected[0] > expected[1] > expected[2:].max()
    nobody = baselines(dataclasses.replace(known, count=count * (np.arange(9) < 3)), 3)
    assert nobody["frequency"][0].tolist() == nobody["constant"][0].tolist() == [0.0] * 4


def test_a_time_without_events_has_no_auc_and_no_bias():
    forecast = (np.array([0.5, 1.0]), np.array([0.2, 0.3]))
    figures = forecast_figures({"constant": forecast, "model": forecast}, np.zeros(2), 0)
    assert figures["auc.model"]["value"] is figures["bias.model"]["value"] is None
    assert figures["ece.model"]["value"] == pytest.approx(0.25)
    assert figures["rmse.model_minus_constant"]["value"] == 0


def test_which_events_and_periods(tmp_path):
    """Purchases where there are any, else the commonest kind; days where weeks would be too few."""
    views = purchases(weeks=3, seed=1, kind="view")
    carts = purchases(shoppers=5, weeks=3, seed=2, kind="cart")
    logs = write(tmp_path / "logs", events=pd.concat([views, carts], ignore_index=True))
    _, report = fit_events(logs, tmp_path / "out", CONFIG, silent, QUICK)
    record = report["record"]
    assert (record["event"], record["period_days"], record["periods"]) == ("view", 1, 21)
    both = pd.concat([views, carts.assign(kind="purchase")], ignore_index=True)
    _, report = fit_events(write(tmp_path / "logs", events=both), tmp_path / "out", CONFIG, silent, QUICK)
    assert report["record"]["event"] == "purchase"


def test_logs_with_impressions_are_for_shoppers(fitted, tables, write_logs, tmp_path):
    assert events_alone(fitted[0] / "logs")
    logs = write_logs(tmp_path / "logs", tables)
    assert not events_alone(logs)
    assert not events_alone(tmp_path / "nowhere")
    with pytest.raises(InputError, match="the log has no events; return models learn from the table events"):
        fit_events(logs, tmp_path / "out", CONFIG, silent, QUICK)


@pytest.mark.parametrize(
    ("events", "config", "message"),
    [
        (purchases()[:0], CONFIG, "events.parquet: the table has no rows"),
        (purchases()[:1], CONFIG, "too short a record to hold a part of it out; got '1 days', expected 3 or more"),
        (purchases().drop_duplicates("shopper_id"), CONFIG, "too short|nobody comes back|no period follows"),
        (purchases().assign(shopper_id="s1").drop_duplicates("timestamp")[:2], CONFIG, "nobody|no period|too short"),
        (purchases(), dataclasses.replace(CONFIG, seed=-1), "fit.seed: bad config; got -1"),
        (purchases(), dataclasses.replace(CONFIG, device="tpu"), "device"),
    ],
)
def test_what_cannot_be_fitted_is_one_line_and_nothing_is_written(events, config, message, tmp_path):
    logs = write(tmp_path / "logs", events=events)
    with pytest.raises(InputError, match=message) as caught:
        fit_events(logs, tmp_path / "out", config, silent, QUICK)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_fit_that_is_broken_off_leaves_what_was_there(fitted, tmp_path):
    home = fitted[0]
    fit_events(home / "logs", tmp_path / "out", CONFIG, silent, QUICK)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def stop(line: str) -> None:
        if line.startswith("fitting to the whole"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_events(home / "logs", tmp_path / "out", dataclasses.replace(CONFIG, seed=4), stop, QUICK)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_things_are_not_written_over(fitted, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="the directory holds files that Hawker did not write"):
        fit_events(fitted[0] / "logs", tmp_path / "out", CONFIG, silent, QUICK)
