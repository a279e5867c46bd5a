"""Return models: what they learn from shoppers of known habits, and what they do with odd logs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.shop.artefacts import verify_directory, write_directory
from hawker.shop.errors import InputError
from hawker.simulators.histories import Histories
from hawker.simulators.returning import ReturnConfig, ReturnModel, fit_returns, load_returns

CPU = torch.device("cpu")
QUICK = ReturnConfig(of_each=1, hidden=4, classes=2, steps=5)
START = pd.Timestamp("2026-01-01", tz="UTC")


def silent(line: str) -> None:
    """Report nothing."""


def histories(count: np.ndarray[Any, np.dtype[Any]], period_days: int = 7) -> Histories:
    """Return histories with these counts (n, T); the first period with an event is the birth."""
    count = count.astype(np.float32)
    value = np.where(count > 0, 3.0, np.nan).astype(np.float32)
    names = np.array([f"s{i}" for i in range(len(count))])
    return Histories(names, count, value, (count > 0).argmax(1), period_days, START)


def steady(n: int, periods: int, seed: int) -> tuple[np.ndarray[Any, np.dtype[Any]], np.ndarray[Any, np.dtype[Any]]]:
    """Shoppers who never leave: half buy in 2% of the weeks, half in 30%; also each one's own share."""
    generator = np.random.default_rng(seed)
    share = np.where(generator.random(n) < 0.5, 0.02, 0.3)
    count = generator.random((n, periods)) < share[:, None]
    count[:, 0] = True
    return count, share


def predictions(model: ReturnModel, known: Histories, periods: int) -> tuple[Any, Any]:
    events, active = (field.double().numpy() for field in model.forecast(known, periods, draws=30))
    return events, active


@pytest.fixture(scope="module")
def quick() -> tuple[Histories, ReturnModel]:
    known = histories(steady(60, 12, 4)[0])
    return known, fit_returns(known, QUICK, 1, CPU, silent)


def test_habits_are_recovered() -> None:
    """Forecasts come near to what the true law, told the same history, expects."""
    count, _ = steady(800, 46, 8)
    known, later = histories(count[:, :26]), count[:, 26:].sum(1)
    config = ReturnConfig(of_each=1, hidden=8, classes=2, steps=40, learning_rate=0.03)
    events, active = predictions(fit_returns(known, config, 1, CPU, silent), known, 20)
    again = count[:, 1:26].sum(1)
    odds = (0.3 / 0.02) ** again * (0.7 / 0.98) ** (25 - again)
    often = odds / (1 + odds)  # P(one of the frequent | history)
    best = 20 * (0.3 * often + 0.02 * (1 - often))
    assert events.sum() / later.sum() == pytest.approx(1, abs=0.1)
    assert np.sqrt(np.mean((events - best) ** 2)) < 0.35 * np.sqrt(np.mean((best - best.mean()) ** 2))
    truth = 1 - (often * 0.7**20 + (1 - often) * 0.98**20)
    assert np.mean(np.abs(active - truth)) < 0.1


def test_the_forecast_is_the_mean_of_the_members(quick: tuple[Histories, ReturnModel]) -> None:
    known, model = quick
    whole = model.forecast(known, 5)
    # The recurrent member is asked first, so that it sees the same draws alone as in company.
    parts = [model.forecast(known, 5, member=i) for i in range(3)]
    for field, each in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(field, torch.stack(each).mean(0))
    assert ((whole.active >= 0) & (whole.active <= 1)).all()
    assert (whole.events >= 0).all()


def test_blocks_of_shoppers_do_not_change_what_is_exact(
    quick: tuple[Histories, ReturnModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    known, model = quick
    whole = model.forecast(known, 5, draws=2)
    monkeypatch.setattr("hawker.simulators.returning._FORECAST_ROWS", 14)
    torch.testing.assert_close(model.forecast(known, 5, draws=2).active, whole.active)


@pytest.mark.usefixtures("nothing_global")
def test_a_seed_decides_everything(quick: tuple[Histories, ReturnModel]) -> None:
    known, model = quick
    again = fit_returns(known, QUICK, 1, CPU, silent)
    other = fit_returns(known, QUICK, 2, CPU, silent)
    first, same, different = (one.forecast(known, 4, seed=3) for one in (model, again, other))
    torch.testing.assert_close(first, same, rtol=0, atol=0)
    assert not torch.equal(first.events, different.events)
    assert not torch.equal(first.events, model.forecast(known, 4, seed=4).events)


def test_small_batches_learn_too(quick: tuple[Histories, ReturnModel]) -> None:
    known, _ = quick
    told: list[str] = []
    model = fit_returns(known, ReturnConfig(of_each=1, hidden=4, classes=2, steps=5, batch=16), 1, CPU, told.append)
    assert torch.isfinite(model.forecast(known, 3).events).all()
    assert [line.split("(")[1].split(")")[0] for line in told] == ["EventGru", "DormantClasses", "Truncations"]


def test_what_is_saved_forecasts_the_same(quick: tuple[Histories, ReturnModel], tmp_path: Path) -> None:
    known, model = quick
    with write_directory(tmp_path / "returns", "returns") as scratch:
        model.save(scratch)
    loaded = load_returns(verify_directory(tmp_path / "returns", "returns"), CPU)
    torch.testing.assert_close(loaded.forecast(known, 5), model.forecast(known, 5), rtol=0, atol=0)
    assert loaded.config == QUICK


def test_damaged_files_are_named(quick: tuple[Histories, ReturnModel], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_returns(tmp_path, CPU)
    quick[1].save(tmp_path)
    meta = json.loads((tmp_path / "returns.json").read_text())
    (tmp_path / "returns.json").write_text(json.dumps({**meta, "config": {**meta["config"], "hidden": 5}}))
    with pytest.raises(InputError, match="no return model of this version"):
        load_returns(tmp_path, CPU)
    (tmp_path / "returns.json").write_text("{}")
    with pytest.raises(InputError, match="no return model of this version"):
        load_returns(tmp_path, CPU)
    (tmp_path / "returns.json").write_text(json.dumps(meta))
    (tmp_path / "returns.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no return model of this version"):
        load_returns(tmp_path, CPU)


def test_a_later_customer_and_a_longer_record_are_read(quick: tuple[Histories, ReturnModel]) -> None:
    """A model forecasts for shoppers and lengths of record that it was not fitted to."""
    _, model = quick
    for count in (np.eye(30), np.ones((1, 50)), np.array([[1]])):
        events, active = model.forecast(histories(count), 60, draws=3)
        assert torch.isfinite(events).all()
        assert ((active >= 0) & (active <= 1)).all()


@pytest.mark.parametrize(
    "count",
    [
        np.array([[1, 0, 1, 0]]),  # one shopper
        np.array([[1, 1]]),
        np.ones((3, 20)) * 7,  # always, every day
        np.vstack([np.eye(50, 60), [1] * 60]),  # one event each, but for one shopper
        np.array([[1] + [0] * 200 + [1]]),
    ],
    ids=["one shopper", "two periods", "every day", "one event each but one", "a long silence"],
)
def test_odd_logs_give_finite_forecasts(count: np.ndarray[Any, np.dtype[Any]]) -> None:
    known = histories(count)
    found = fit_returns(known, QUICK, 1, CPU, silent).forecast(known, 10, draws=3)
    assert all(torch.isfinite(field).all() for field in found)
    assert ((found.active >= 0) & (found.active <= 1)).all()


def test_logs_without_revenue_and_with_a_shopper_of_100000_events_are_learned() -> None:
    times = pd.date_range(START, periods=100_000, freq="min", tz="UTC")
    bot = pd.DataFrame({"shopper_id": "bot", "timestamp": times, "kind": "view"})
    ann = pd.DataFrame({"shopper_id": "ann", "timestamp": times[::40_000], "kind": "view"})
    known = Histories.from_events(pd.concat([bot, ann], ignore_index=True), kind="view", period_days=1)
    found = fit_returns(known, QUICK, 1, CPU, silent).forecast(known, 10, draws=3)
    assert all(torch.isfinite(field).all() for field in found)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (np.eye(5), "nobody comes back in a later period"),
        (np.array([[1], [2]]), "no period follows a first event; got '2 shoppers, 1 periods of 7 days'"),
        (np.array([[0, 1], [0, 3]]), "no period follows a first event"),
    ],
)
def test_logs_without_returns_are_refused(count: np.ndarray[Any, np.dtype[Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_returns(histories(count), QUICK, 1, CPU, silent)


def test_a_config_without_members_is_refused(quick: tuple[Histories, ReturnModel]) -> None:
    with pytest.raises(InputError, match="of_each: not a positive number; got 0"):
        fit_returns(quick[0], ReturnConfig(of_each=0), 1, CPU, silent)


@pytest.mark.parametrize(
    ("known", "options", "message"),
    [
        (histories(np.ones((1, 3))), {"periods": 0}, "periods: not a positive number; got 0"),
        (histories(np.ones((1, 3))), {"periods": 2, "draws": 0}, "draws: not a positive number; got 0"),
        (histories(np.ones((1, 3)), 1), {"periods": 2}, "periods of another length; got 1, expected 7"),
    ],
)
def test_impossible_forecasts_are_refused(
    quick: tuple[Histories, ReturnModel], known: Histories, options: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        quick[1].forecast(known, **options)
