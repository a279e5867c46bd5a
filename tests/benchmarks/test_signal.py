import json
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.agents.config import TrainConfig
from hawker.benchmarks import signal
from hawker.benchmarks.ope import Estimate
from hawker.benchmarks.signal import (
    COVERED,
    UNITS,
    SignalConfig,
    bench_signal,
    click_figures,
    count_coverage,
    expected_auc,
    over_seeds,
    share_figure,
    strategy_figures,
    write_log,
)
from hawker.policies.baselines import RandomStrategy
from hawker.policies.protocol import Strategy
from hawker.policies.slate import PlackettLuce
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.simulators.config import FitConfig, PlantedEffects
from hawker.simulators.planted import PlantedWorld
from hawker.simulators.small import small_tables
from hawker.simulators.store import FittedShoppers, whole_catalog
from hawker.simulators.support import Support

TINY = SignalConfig(
    impressions=4_000,
    seeds=(0,),
    repeats=3,
    effects=PlantedEffects(ctr=0.1),
    fit=FitConfig(members=2, epochs=4),
    train=TrainConfig(steps=8_192, shoppers=256, batch=512),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[FittedShoppers, PlantedWorld, Context[torch.Tensor]]:
    """Shoppers that know their catalog and nothing else, the world behind them, and its shoppers' contexts."""
    impressions, items = small_tables()
    logs = tmp_path_factory.mktemp("signal") / "logs"
    write_log(logs, impressions, items)
    builder = ContextBuilder.fit(impressions, items)
    seen = builder.from_impressions(impressions)
    contexts = whole_catalog(torch.from_numpy(seen.shopper), torch.from_numpy(seen.affinity))
    world = PlantedWorld(builder, contexts, 3, PlantedEffects(ctr=0.1), seed=5)
    support = Support.from_impressions(impressions, builder.catalog, None, 1)
    nothing = {"train": None}
    shoppers = FittedShoppers(builder, 3, FitConfig(), nothing, {}, logs, "", support)  # type: ignore[arg-type]
    return shoppers, world, contexts


def test_a_written_log_is_read_as_it_was(tmp_path: Path):
    impressions, items = small_tables(n_rows=50)
    write_log(tmp_path / "logs", impressions, items)
    logs = read_logs(tmp_path / "logs")
    assert logs.impressions is not None
    assert logs.impressions["item_id"].tolist() == impressions["item_id"].tolist()


# Areas under the curve


def test_expected_auc_of_two_groups_is_the_one_on_paper():
    a, b = 0.3, 0.1  # the upper half clicks with 0.3, the lower with 0.1
    score, probability = np.array([1.0, 1.0, 0.0, 0.0]), np.array([a, a, b, b])
    pairs = a * (1 - b) + (a * (1 - a) + b * (1 - b)) / 2
    assert expected_auc(score, probability) == pytest.approx(pairs / ((a + b) * (2 - a - b)))
    assert expected_auc(-score, probability) == pytest.approx(1 - pairs / ((a + b) * (2 - a - b)))
    assert expected_auc(np.zeros(4), probability) == pytest.approx(0.5)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.floats(0.01, 0.99)),
        min_size=2,
        max_size=12,
    )
)
def test_expected_auc_is_the_share_of_ordered_pairs(rows: list[tuple[int, float]]):
    score, p = np.array([float(s) for s, _ in rows]), np.array([q for _, q in rows])
    won = (score[:, None] > score) + 0.5 * (score[:, None] == score)
    pairs = p[:, None] * (1 - p)
    assert expected_auc(score, p) == pytest.approx((won * pairs).sum() / pairs.sum())


def test_expected_auc_is_what_drawn_clicks_come_to():
    generator = np.random.default_rng(0)
    probability = generator.beta(2, 8, size=2_000)
    score = probability + 0.1 * generator.standard_normal(2_000)
    drawn = []
    for _ in range(200):
        clicked = generator.random(2_000) < probability
        rank = score.argsort().argsort() + 1
        n, m = int(clicked.sum()), int((~clicked).sum())
        drawn.append((rank[clicked].sum() - n * (n + 1) / 2) / (n * m))
    assert expected_auc(score, probability) == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / 200**0.5)


# Figures


def test_share_figure_is_clopper_and_pearson_s():
    found = share_figure(95, 100)
    assert (found["value"], found["n"], found["unit"]) == (0.95, 100, "share of repeats")
    assert (found["low"], found["high"]) == pytest.approx((0.887165, 0.983568), abs=1e-6)
    every = share_figure(20, 20)
    assert (every["low"], every["high"]) == pytest.approx((0.025 ** (1 / 20), 1))


def test_over_seeds_is_a_mean_with_its_t_interval():
    found = over_seeds([1.0, 2.0, 3.0], "ratio")
    half = 4.302653 / math.sqrt(3)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((2, 2 - half, 2 + half), abs=1e-6)
    assert (found["n"], found["unit"]) == (3, "ratio")
    assert over_seeds([0.7], "ratio") == {"value": 0.7, "low": None, "high": None, "n": 1, "unit": "ratio"}


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_model_that_knows_the_truth_has_no_gap(shop, monkeypatch: pytest.MonkeyPatch, factor: float):
    shoppers, world, contexts = shop
    truth = world.draw(signal.PROBES, torch.Generator().manual_seed(4)).probability.numpy()
    monkeypatch.setattr(signal, "predict", lambda ensemble, rows: factor * truth)
    found = click_figures(shoppers, world, contexts, seed=3)
    assert found["click.auc_gap"] == pytest.approx(0, abs=1e-12)
    assert 0.6 < found["click.auc"] == found["click.auc_truth"] < 0.9
    assert found["click.calibration"] == pytest.approx(factor)
    assert found["click.calibration_worst_decile"] == pytest.approx(factor)


def test_the_worst_decile_is_the_one_furthest_off_in_either_direction(shop, monkeypatch: pytest.MonkeyPatch):
    shoppers, world, contexts = shop
    truth = world.draw(signal.PROBES, torch.Generator().manual_seed(4)).probability.numpy()
    rank = truth.argsort().argsort() / len(truth)
    monkeypatch.setattr(signal, "predict", lambda ensemble, rows: np.where(rank < 0.1, truth / 3, truth * 1.1))
    found = click_figures(shoppers, world, contexts, seed=3)
    assert found["click.calibration_worst_decile"] == pytest.approx(1 / 3, rel=1e-6)


def test_probes_reach_the_model_as_the_shoppers_see_them(shop, monkeypatch: pytest.MonkeyPatch):
    shoppers, world, contexts = shop
    seen = []

    def predict(ensemble: object, rows: signal.Rows) -> np.ndarray:
        seen.append(rows)
        return np.full(len(rows), 0.1)

    monkeypatch.setattr(signal, "predict", predict)
    click_figures(shoppers, world, contexts, seed=3)
    drawn = world.draw(signal.PROBES, torch.Generator().manual_seed(4))
    (rows,) = seen
    assert torch.equal(rows.shopper, contexts.shopper[drawn.row])
    assert torch.equal(rows.item, drawn.item)
    assert torch.equal(rows.position, drawn.position)
    assert torch.equal(rows.affinity, contexts.affinity[drawn.row].gather(1, drawn.item[:, None]).squeeze(1))


class Knowing(Strategy):
    """Shows what the world itself would click; its pages are the world's shoppers in order."""

    name, size = "knowing", 3

    def __init__(self, world: PlantedWorld) -> None:
        every = torch.arange(len(world.builder.catalog)).expand(500, -1)
        self.logits = 2 * world.attraction(torch.arange(500), every).logit().float()

    def distribution(self, context: Context[torch.Tensor]) -> PlackettLuce:
        return PlackettLuce(self.logits, context.mask, self.size)


def test_shares_are_of_the_best_slates(shop):
    _, world, contexts = shop
    found = strategy_figures(Knowing(world), world, contexts, seed=0)
    assert found["ppo.greedy_share_of_best"] == 1.0
    assert found["random.share_of_best"] < found["ppo.share_of_best"] < 1.0
    row = torch.arange(500)
    best = world.attraction(row, torch.arange(20).expand(500, -1)).topk(3).values @ world.examination
    uniform = 3 * 0.1  # the planted click rate, on each of three positions
    assert found["random.share_of_best"] == pytest.approx(uniform / float(best.mean()), rel=0.1)
    assert strategy_figures(Knowing(world), world, contexts, seed=0) == found


@pytest.mark.parametrize(("low", "high", "covered"), [(0.098, 0.102, 3), (0.102, 0.2, 0), (0.0, 0.098, 0)])
def test_coverage_is_counted_against_the_true_click_rate(
    shop, monkeypatch: pytest.MonkeyPatch, low: float, high: float, covered: int
):
    shoppers, world, contexts = shop
    seen = []

    def estimate(clicked, item, propensity, target, q, names, seed):
        assert target.shape == q.shape == (800, 20)
        np.testing.assert_allclose(target.sum(axis=1), 1, atol=1e-5)
        assert (propensity == 1 / 20).all()
        seen.append((clicked.mean(), seed))
        return dict.fromkeys(names, Estimate(0.1, low, high, 700.0))

    monkeypatch.setattr(signal, "estimate", estimate)
    said: list[str] = []
    figures = count_coverage(RandomStrategy(3), world, contexts, shoppers, TINY, said.append)
    assert [figures[f"coverage.{name}"]["value"] for name in COVERED] == [covered / 3] * len(COVERED)
    assert figures["coverage.ess"] == {"value": 700, "low": 700, "high": 700, "n": 800, "unit": "rows"}
    assert [seed for _, seed in seen] == [0, 1, 2]
    assert len({mean for mean, _ in seen}) > 1  # fresh logs


def test_coverage_is_of_the_strategy_at_the_drawn_positions(shop, monkeypatch: pytest.MonkeyPatch):
    shoppers, world, contexts = shop
    knowing = Knowing(world)
    marginals = knowing.distribution(contexts).marginals(2, torch.Generator()).probability.double()
    seen = []

    def estimate(clicked, item, propensity, target, q, names, seed):
        drawn = world.draw(800, torch.Generator().manual_seed(1_000_000 + seed))
        np.testing.assert_array_equal(target, marginals[drawn.row, drawn.position].numpy())
        np.testing.assert_array_equal(item, drawn.item.numpy())
        np.testing.assert_array_equal(clicked, drawn.clicked.numpy())
        seen.append(seed)
        return dict.fromkeys(names, Estimate(0.1, 0.0, 1.0, 700.0))

    monkeypatch.setattr(signal, "estimate", estimate)
    count_coverage(knowing, world, contexts, shoppers, TINY, print)
    assert seen == [0, 1, 2]


def test_the_whole_line_end_to_end(tmp_path: Path):
    impressions, items = small_tables()
    write_log(tmp_path / "logs", impressions, items)
    said: list[str] = []
    started = time.perf_counter()
    report = bench_signal(tmp_path / "logs", TINY, said.append)
    assert time.perf_counter() - started < 20
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    names = {*UNITS, *(f"coverage.{name}" for name in COVERED), "coverage.ess"}
    assert set(report["figures"]) == names
    assert all(math.isfinite(seen["value"]) for seen in report["figures"].values())
    (row,) = report["by_seed"]
    assert row == {"seed": 0} | {name: report["figures"][name]["value"] for name in UNITS}
    assert 0 <= row["click.auc_gap"] < row["click.auc_truth"] - 0.5  # worse than the truth, better than chance
    assert row["random.share_of_best"] < row["ppo.share_of_best"] < row["ppo.greedy_share_of_best"] < 1
    assert report["seeds"] == [0]
    assert said[0].startswith("seed 0: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SignalConfig(impressions=99), "signal.impressions: too few; got 99, expected at least 100"),
        (SignalConfig(repeats=0), "signal.repeats: too few; got 0, expected at least 1"),
        (SignalConfig(seeds=()), "signal.seeds: bad seeds; got (), expected one or more, 0 to 2**62 - 1"),
        (SignalConfig(seeds=(1, -2)), "signal.seeds: bad seeds; got (1, -2), expected one or more, 0 to 2**62 - 1"),
        (
            SignalConfig(effects=PlantedEffects(ctr=1.0)),
            "signal.ctr: not a click rate; got 1.0, expected between 0 and 1",
        ),
        (
            SignalConfig(effects=PlantedEffects(ctr=math.nan)),
            "signal.ctr: not a click rate; got nan, expected between 0 and 1",
        ),
    ],
)
def test_bad_config_is_named(tmp_path: Path, config: SignalConfig, message: str):
    with pytest.raises(InputError) as caught:
        bench_signal(tmp_path, config, print)
    assert str(caught.value) == message


def test_logs_without_impressions_are_refused(tmp_path: Path):
    events = pd.DataFrame({"shopper_id": ["a"], "timestamp": ["2026-01-01T00:00Z"], "kind": ["view"]})
    (tmp_path / "logs").mkdir()
    events.to_parquet(tmp_path / "logs" / "events.parquet")
    with pytest.raises(InputError, match="the log has no impressions"):
        bench_signal(tmp_path / "logs", TINY, print)


@pytest.mark.slow
def test_a_signal_that_is_there_is_found(tmp_path: Path):
    """Fast enough for a test, large enough to see the line work; the README's figures come from `hawker bench`."""
    impressions, items = small_tables(n_rows=3_000)
    write_log(tmp_path / "logs", impressions, items)
    config = SignalConfig(60_000, (0,), 20, PlantedEffects(ctr=0.05), FitConfig(epochs=20), TrainConfig(steps=150_000))
    figures = bench_signal(tmp_path / "logs", config, lambda _: None)["figures"]
    assert figures["click.auc_gap"]["value"] < 0.01
    assert 0.9 < figures["click.calibration"]["value"] < 1.1
    assert figures["ppo.greedy_share_of_best"]["value"] > 0.9
    assert figures["coverage.dr"]["value"] >= 0.8  # at 95% fewer than 16 of 20 happen once in 3,000 times
