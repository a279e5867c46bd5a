import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.benchmarks.crossfit import crossfit_q
from hawker.benchmarks.evaluation import HeldOut, _differences, _evaluate_rows, evaluate
from hawker.benchmarks.ope import ESTIMATORS
from hawker.policies.baselines import LoggingClone, RandomStrategy
from hawker.shop.context import ContextBuilder
from hawker.shop.errors import InputError
from hawker.simulators.config import FitConfig, PlantedEffects
from hawker.simulators.planted import PlantedWorld
from hawker.simulators.small import small_tables
from hawker.simulators.store import FittedShoppers

ITEMS, SIZE = 20, 3
MOSTLY_ESTIMATES = FitConfig(shares=(0.02, 0.02, 0.96))


@pytest.fixture(scope="module")
def marginals_of(slates_of):
    """A function of (logits, size) to P(item at position), shape (size, n_items), by enumeration."""

    def enumerate_slates(logits: np.ndarray, size: int) -> np.ndarray:
        slates, probability = slates_of(logits, size)
        return np.stack([np.bincount(slates[:, k], probability, minlength=len(logits)) for k in range(size)])

    return enumerate_slates


def planted(n: int, size: int, seed: int = 0) -> tuple[PlantedWorld, pd.DataFrame, pd.DataFrame]:
    """A world with planted clicks, n impressions of the uniform strategy in it, and its items."""
    impressions, items = small_tables(ITEMS, size, seed=seed)
    builder = ContextBuilder.fit(impressions, items)
    bank = builder.from_impressions(impressions).map(lambda array: torch.from_numpy(np.array(array)))
    world = PlantedWorld(builder, bank, size, PlantedEffects(ctr=0.1), seed)
    return world, world.write_log(n, impressions, seed), items


def truth_of(world: PlantedWorld, marginals: np.ndarray) -> float:
    """Expected clicks per impression of a strategy in the world, at uniformly drawn positions."""
    row = torch.arange(500)
    attraction = world.attraction(row, torch.arange(ITEMS).expand(500, -1)).numpy().mean(axis=0)
    return float((marginals * attraction * world.examination.numpy()[:, None]).sum(axis=1).mean())


@pytest.fixture(scope="module")
def world_and_run(tmp_path_factory: pytest.TempPathFactory, log_to) -> tuple[PlantedWorld, FittedShoppers]:
    world, impressions, items = planted(6_000, SIZE)
    return world, log_to(tmp_path_factory.mktemp("planted"), SIZE, impressions=impressions, items=items)


@pytest.fixture(scope="module")
def run(world_and_run: tuple[PlantedWorld, FittedShoppers]) -> FittedShoppers:
    return world_and_run[1]


@pytest.fixture(scope="module")
def held_out(run: FittedShoppers) -> HeldOut:
    return HeldOut.from_run(run, seed=0)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, log_to) -> FittedShoppers:
    """A log of pages with one position."""
    _, impressions, items = planted(1_500, 1)
    return log_to(tmp_path_factory.mktemp("single"), 1, impressions=impressions, items=items)


# Rows


def test_held_out_rows_are_those_kept_for_estimates(run: FittedShoppers, held_out: HeldOut):
    rows = run.read_part("estimate")
    assert len(held_out.item) == len(rows) == round(0.96 * 6_000)
    assert [run.builder.catalog.item_ids[i] for i in held_out.item[:9]] == rows["item_id"].tolist()[:9]
    np.testing.assert_array_equal(held_out.clicked, rows["clicked"])
    np.testing.assert_array_equal(held_out.position, rows["position"])
    assert held_out.q.shape == (len(rows), ITEMS)
    assert ((held_out.q > 0) & (held_out.q < 1)).all()
    assert held_out.context.mask.all()
    assert held_out.support.all()
    assert len(set(held_out.cluster)) == len(rows)  # nobody is known: every visit is its own


def test_rows_of_known_shoppers_are_clustered(run: FittedShoppers):
    rows = run.read_part("estimate").head(400)
    rows["shopper_id"] = pd.Series([f"s{i // 4}" for i in range(400)], dtype="str")
    found = HeldOut.from_impressions(rows, run, seed=0)
    shopper = rows["shopper_id"]
    assert len({*zip(found.cluster, shopper, strict=True)}) == len({*found.cluster}) == shopper.nunique() == 100
    context, vectors = run.builder.from_impressions(rows), run.builder.catalog.vectors
    arrays = (context.shopper, found.item, found.clicked, found.position, ITEMS, vectors)
    q = crossfit_q(*arrays, affinity=context.affinity, seed=0, cluster=found.cluster)
    np.testing.assert_array_equal(found.q, q)  # a shopper is in one fold
    rows.loc[0, "shopper_id"] = None
    assert len({*HeldOut.from_impressions(rows, run, seed=0).cluster}) == 101  # a stranger, and the others as before


def test_rows_of_one_shopper_are_one_observation(run: FittedShoppers, fixed):
    rows = run.read_part("estimate").head(500)
    rows["shopper_id"] = pd.Series([f"s{i}" for i in range(500)], dtype="str")
    copies = rows.loc[rows.index.repeat(6)].reset_index(drop=True).assign(visit_id=np.arange(3_000))
    often = HeldOut.from_impressions(copies, run, seed=0)
    strategies = [RandomStrategy(SIZE), fixed(np.linspace(-1, 1, ITEMS), SIZE)]
    seen, blind = (
        _evaluate_rows(held_out, strategies, False, 0)["figures"]
        for held_out in (often, replace(often, cluster=np.arange(len(often.item))))
    )
    for name in ("logged", "dr.fixed", "ips.fixed", "dr.fixed_minus_random"):
        wide, narrow = (figures[name]["high"] - figures[name]["low"] for figures in (seen, blind))
        assert wide > 1.8 * narrow, name  # the square root of 6 is 2.4


def test_items_that_were_never_shown_have_no_support(run: FittedShoppers):
    rows = run.read_part("estimate")
    kept = rows[rows["item_id"] != "item-7"].reset_index(drop=True)
    found = HeldOut.from_impressions(kept, run, seed=0)
    assert np.flatnonzero(~found.support).tolist() == [7]


def test_target_is_a_distribution_over_items(held_out: HeldOut, fixed):
    logits = np.random.default_rng(0).normal(size=ITEMS)
    target, error = held_out.target(fixed(logits, SIZE), seed=0)
    assert target.shape == held_out.q.shape
    np.testing.assert_allclose(target.sum(axis=1), 1.0, atol=1e-12)
    assert (target >= 0).all()
    assert error == 0  # three slots need no sampling


def test_target_of_a_log_with_one_position_is_exact(single: FittedShoppers, fixed):
    held_out = HeldOut.from_run(single, seed=0)
    logits = np.random.default_rng(0).normal(size=ITEMS)
    target, error = held_out.target(fixed(logits, 1), seed=0)
    assert error == 0
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(target, np.broadcast_to(expected, target.shape), rtol=1e-5)  # float32
    uniform, _ = held_out.target(RandomStrategy(1), seed=0)
    np.testing.assert_allclose(uniform, 1 / ITEMS, atol=1e-8)


def test_target_of_later_positions_agrees_with_enumeration(held_out: HeldOut, fixed, marginals_of):
    logits = np.random.default_rng(0).normal(size=ITEMS)
    target, _ = held_out.target(fixed(logits, SIZE), seed=0)
    np.testing.assert_allclose(target, marginals_of(logits, SIZE)[held_out.position], atol=1e-7)
    uniform, _ = held_out.target(RandomStrategy(SIZE), seed=0)
    np.testing.assert_allclose(uniform, 1 / ITEMS, atol=1e-8)


def test_target_of_a_fourth_position_states_its_error(tmp_path: Path, fixed, log_to, marginals_of):
    _, impressions, items = planted(400, 4)
    run = log_to(tmp_path / "logs", 4, impressions=impressions, items=items)
    held_out = HeldOut.from_run(run, seed=0)
    logits = np.random.default_rng(0).normal(size=ITEMS)
    target, error = held_out.target(fixed(logits, 4), seed=0)
    exact = marginals_of(logits, 4)[held_out.position]
    assert 0 < np.abs(target - exact).max() < 6 * error < 0.1
    again, _ = held_out.target(fixed(logits, 4), seed=0)
    other, _ = held_out.target(fixed(logits, 4), seed=1)
    np.testing.assert_array_equal(target, again)
    assert (target != other).any()
    assert evaluate(run, [fixed(logits, 4)])["diagnostics"]["fixed"]["marginal_error"] == error


def test_a_strategy_may_fill_more_positions_than_the_log_has(single: FittedShoppers, fixed):
    held_out = HeldOut.from_run(single, seed=0)
    one, more = (held_out.target(fixed(np.arange(ITEMS) / 9, size), seed=0)[0] for size in (1, 3))
    np.testing.assert_allclose(one, more, atol=1e-7)


@pytest.mark.parametrize("size", [1, SIZE])
def test_uniform_strategy_on_a_uniform_log_is_worth_the_logged_mean(
    run: FittedShoppers, single: FittedShoppers, size: int
):
    shoppers = single if size == 1 else run
    report = evaluate(shoppers, [RandomStrategy(size)], seed=1)
    mean = shoppers.read_part("estimate")["clicked"].mean()
    for name in ("ips", "snips", "ips_clip(5)", "sg-ips(0.1)"):
        assert report["figures"][f"{name}.random"]["value"] == pytest.approx(mean, abs=1e-9)
    assert report["figures"]["logged"]["value"] == mean
    seen = report["diagnostics"]["random"]
    assert (seen["ess"], seen["mean_weight"]) == pytest.approx((seen["n"], 1.0))
    assert (seen["unsupported_mass"], seen["marginal_error"]) == (0, 0)


def test_report_has_every_estimator_with_its_interval_and_is_json(run: FittedShoppers, fixed):
    strategies = [RandomStrategy(SIZE), fixed(np.linspace(-1, 1, ITEMS), SIZE)]
    report = evaluate(run, strategies)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    names = {f"{e}.{s.name}" for e in ESTIMATORS for s in strategies} | {"logged", "dr.fixed_minus_random"}
    assert set(report["figures"]) == names
    for seen in report["figures"].values():
        assert seen["low"] <= seen["value"] <= seen["high"]
        assert seen["n"] == round(0.96 * 6_000)
        assert seen["unit"] == "clicks per impression"
    assert (report["refused"], report["forced"], report["seeds"]) == ({}, False, [0])


def test_a_clone_of_the_logging_strategy_has_weights_near_one(tmp_path: Path, log_to):
    generator = np.random.default_rng(0)
    impressions, items = small_tables(ITEMS, 1, n_rows=20_000)
    chance = generator.dirichlet(np.full(ITEMS, 5.0))
    item = generator.choice(ITEMS, 20_000, p=chance)
    impressions["item_id"] = items["item_id"].to_numpy()[item]
    impressions["clicked"] = (generator.random(20_000) < 0.05 + 0.1 * chance[item]).astype(np.int8)
    impressions["propensity"] = chance[item]
    shoppers = log_to(tmp_path / "logs", 1, impressions=impressions, items=items)
    rows = shoppers.read_part("estimate")
    clone = LoggingClone.fit(rows, shoppers.builder.catalog, 1)
    held_out = HeldOut.from_impressions(rows, shoppers, seed=0)
    target, _ = held_out.target(clone, seed=0)
    weight = target[np.arange(len(rows)), held_out.item] / held_out.propensity
    # A share of k counts has a relative error of 1 / sqrt(k); the rarest item stands in some 150 rows.
    assert np.abs(weight - 1).max() < 0.25
    assert weight.mean() == pytest.approx(1, abs=0.01)
    report = evaluate(shoppers, [clone, RandomStrategy(1)])
    assert report["diagnostics"]["clone"]["ess"] > 0.98 * len(rows)
    logged = report["figures"]["logged"]
    assert logged["low"] < report["figures"]["dr.clone"]["value"] < logged["high"]


def test_intervals_hold_the_known_truth(world_and_run: tuple[PlantedWorld, FittedShoppers], fixed, marginals_of):
    world, run = world_and_run
    appeal = np.log(world.attraction(torch.arange(500), torch.arange(ITEMS).expand(500, -1)).numpy().mean(axis=0))
    good = fixed(2 * (appeal - appeal.mean()), SIZE, "good")
    truth = truth_of(world, marginals_of(good.logits.numpy().astype(float), SIZE))
    uniform = truth_of(world, np.full((SIZE, ITEMS), 1 / ITEMS))
    assert truth > 1.3 * uniform
    figures = evaluate(run, [RandomStrategy(SIZE), good])["figures"]
    for name in ("dr", "sndr", "ips", "snips"):
        assert figures[f"{name}.good"]["low"] < truth < figures[f"{name}.good"]["high"]
        assert figures[f"{name}.random"]["low"] < uniform < figures[f"{name}.random"]["high"]
    difference = figures["dr.good_minus_random"]
    assert 0 < difference["low"] < truth - uniform < difference["high"]
    # Paired, what both share cancels: narrower than two intervals put side by side.
    width = sum(figures[f"dr.{name}"]["high"] - figures[f"dr.{name}"]["low"] for name in ("good", "random"))
    assert difference["high"] - difference["low"] < 0.8 * width
    assert difference["value"] == pytest.approx(figures["dr.good"]["value"] - figures["dr.random"]["value"])


@pytest.fixture(scope="module")
def certain(fixed):
    """A strategy that nearly always shows the same item."""
    return fixed([10.0, 5.0, *[-15.0] * (ITEMS - 2)], 1, "certain")


def test_a_nearly_deterministic_strategy_is_refused(single: FittedShoppers, certain):
    report = evaluate(single, [RandomStrategy(1), certain])
    assert list(report["refused"]) == ["certain"]
    rows = len(single.read_part("estimate"))
    assert report["refused"]["certain"].startswith("the effective sample size is ")
    assert f" of {rows} rows, under 100" in report["refused"]["certain"]
    assert not [name for name in report["figures"] if "certain" in name]
    assert report["diagnostics"]["certain"]["ess"] < 100
    assert "dr.random" in report["figures"]


def test_force_gives_the_figures_and_says_so(single: FittedShoppers, certain):
    report = evaluate(single, [RandomStrategy(1), certain], force=True)
    assert report["forced"]
    assert list(report["refused"]) == ["certain"]
    assert {"dr.certain", "dr.certain_minus_random"} <= set(report["figures"])
    assert not evaluate(single, [RandomStrategy(1)], force=True)["forced"]


def test_without_the_first_strategy_there_is_nothing_to_compare_with(single: FittedShoppers, certain):
    report = evaluate(single, [certain, RandomStrategy(1)])
    assert not [name for name in report["figures"] if "_minus_" in name]


def test_the_seed_decides(run: FittedShoppers, fixed):
    strategies = [fixed(np.linspace(-1, 1, ITEMS), SIZE)]
    first, again, other = (evaluate(run, strategies, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first["figures"]["dr.fixed"] != other["figures"]["dr.fixed"]


def test_strategies_of_one_name_are_refused(run: FittedShoppers):
    with pytest.raises(InputError) as caught:
        evaluate(run, [RandomStrategy(SIZE), RandomStrategy(SIZE)])
    assert str(caught.value) == "ope: two strategies have the same name; got ['random', 'random']"


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_bad_seeds_are_refused(run: FittedShoppers, seed: int):
    with pytest.raises(InputError) as caught:
        evaluate(run, [RandomStrategy(SIZE)], seed=seed)
    assert str(caught.value) == f"seed: bad seed; got {seed}, expected an integer from 0 to 2**63 - 1"


@pytest.mark.parametrize("change", ["some are missing", "no column"])
def test_a_log_without_propensities_is_refused(tmp_path: Path, change: str, log_to):
    impressions, items = small_tables(n_rows=200)
    impressions.loc[190, "propensity"] = np.nan
    if change == "no column":
        impressions = impressions.drop(columns="propensity")
    shoppers = log_to(tmp_path / "logs", 3, impressions=impressions, items=items)
    with pytest.raises(InputError) as caught:
        evaluate(shoppers, [RandomStrategy(3)])
    assert str(caught.value) == (
        f"{tmp_path}/logs column propensity: the log does not know its propensities; expected 0 < p <= 1 in every "
        "row; off-policy estimates need them: log P(item at its position) with every impression"
    )


def test_positions_below_the_strategy_s_slate_are_refused(run: FittedShoppers):
    with pytest.raises(InputError) as caught:
        evaluate(run, [RandomStrategy(2)])
    assert str(caught.value) == (
        "strategy random: the log has positions that the strategy does not fill; got 2, expected slates of 3"
    )


def test_a_log_that_has_changed_is_refused(tmp_path: Path, log_to):
    impressions, items = small_tables(n_rows=200)
    shoppers = log_to(tmp_path / "logs", 3, impressions=impressions, items=items)
    impressions.assign(age=1.0).to_parquet(tmp_path / "logs" / "impressions.parquet", index=False)
    with pytest.raises(InputError, match="the log has changed since the shoppers were fitted"):
        evaluate(shoppers, [RandomStrategy(3)])


def test_strategies_of_equal_worth_are_rarely_told_apart():
    """Eight clicks on items that all bring the same: with limits from the seen scores alone, 13 of 100 were."""
    n, ctr, wrong = 2_000, 0.004, 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        target = np.exp(generator.normal(size=80))
        weight = 80 * (target / target.sum())[generator.integers(80, size=n)]
        residual = (generator.random(n) < ctr) - ctr
        scores = {"random": residual + ctr, "other": weight * residual + ctr}
        found = _differences(scores, "random", np.arange(n), seed)["dr.other_minus_random"]
        wrong += found["low"] > 0 or found["high"] < 0
    assert wrong <= 8  # 5 expected
