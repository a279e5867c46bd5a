import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.benchmarks.evaluation import HeldOut, _slates, evaluate
from hawker.benchmarks.ope import ESTIMATORS
from hawker.policies.baselines import LoggingClone, RandomStrategy
from hawker.policies.protocol import Strategy
from hawker.policies.slate import PlackettLuce
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.logs import digest, read_logs
from hawker.simulators.config import FitConfig, PlantedEffects
from hawker.simulators.planted import PlantedWorld
from hawker.simulators.small import small_tables
from hawker.simulators.store import FittedShoppers

ITEMS, SIZE = 20, 3
MOSTLY_ESTIMATES = FitConfig(shares=(0.02, 0.02, 0.96))


class Fixed(Strategy):
    """Plackett-Luce with one logit per catalog item, the same for everybody."""

    def __init__(self, logits: np.ndarray, size: int, name: str = "fixed") -> None:
        self.name, self.size = name, size
        self.logits = torch.from_numpy(np.asarray(logits, np.float32))

    def distribution(self, context: Context[torch.Tensor]) -> PlackettLuce:
        return PlackettLuce(self.logits[context.candidates.long()], context.mask, self.size)


def slates_of(logits: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every ordered slate of ``size`` items and its Plackett-Luce probability, by hand."""
    slates = np.array(list(itertools.permutations(range(len(logits)), size)))
    weight = np.exp(logits)[slates]
    above = np.cumsum(weight, axis=1) - weight
    return slates, (weight / (np.exp(logits).sum() - above)).prod(axis=1)


def marginals_of(logits: np.ndarray, size: int) -> np.ndarray:
    """P(item at position), shape (size, n_items), by enumeration."""
    slates, probability = slates_of(logits, size)
    return np.stack([np.bincount(slates[:, k], probability, minlength=len(logits)) for k in range(size)])


def shoppers_of(directory: Path, size: int, config: FitConfig = MOSTLY_ESTIMATES) -> FittedShoppers:
    """Shoppers that know their log and nothing else: what off-policy estimates need of them."""
    logs = read_logs(directory)
    assert logs.impressions is not None
    assert logs.items is not None
    builder = ContextBuilder.fit(logs.impressions, logs.items)
    return FittedShoppers(builder, size, config, {}, {}, directory, logs.digest)


def write(directory: Path, **tables: pd.DataFrame) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_parquet(directory / f"{name}.parquet", index=False)
    return directory


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
def world_and_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[PlantedWorld, FittedShoppers]:
    world, impressions, items = planted(6_000, SIZE)
    return world, shoppers_of(write(tmp_path_factory.mktemp("planted"), impressions=impressions, items=items), SIZE)


@pytest.fixture(scope="module")
def run(world_and_run: tuple[PlantedWorld, FittedShoppers]) -> FittedShoppers:
    return world_and_run[1]


@pytest.fixture(scope="module")
def held_out(run: FittedShoppers) -> HeldOut:
    return HeldOut.from_run(run, seed=0)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> FittedShoppers:
    """A log of pages with one position."""
    _, impressions, items = planted(1_500, 1)
    return shoppers_of(write(tmp_path_factory.mktemp("single"), impressions=impressions, items=items), 1)


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
    assert held_out.cluster is None


def test_rows_of_known_shoppers_are_clustered(run: FittedShoppers):
    rows = run.read_part("estimate").head(400)
    rows["shopper_id"] = pd.Series([f"s{i // 4}" for i in range(400)], dtype="str")
    found = HeldOut.from_impressions(rows, run, seed=0)
    assert found.cluster is not None
    assert found.cluster.tolist() == rows["shopper_id"].tolist()
    rows.loc[0, "shopper_id"] = None
    assert HeldOut.from_impressions(rows, run, seed=0).cluster is None


def test_items_that_were_never_shown_have_no_support(run: FittedShoppers):
    rows = run.read_part("estimate")
    kept = rows[rows["item_id"] != "item-7"].reset_index(drop=True)
    found = HeldOut.from_impressions(kept, run, seed=0)
    assert np.flatnonzero(~found.support).tolist() == [7]


def test_target_is_a_distribution_over_items(held_out: HeldOut):
    logits = np.random.default_rng(0).normal(size=ITEMS)
    target, error = held_out.target(Fixed(logits, SIZE), seed=0)
    assert target.shape == held_out.q.shape
    np.testing.assert_allclose(target.sum(axis=1), 1.0, atol=1e-12)
    assert (target >= 0).all()
    assert 0 < error < 0.05


def test_target_of_a_log_with_one_position_is_exact(single: FittedShoppers):
    held_out = HeldOut.from_run(single, seed=0)
    logits = np.random.default_rng(0).normal(size=ITEMS)
    target, error = held_out.target(Fixed(logits, 1), seed=0)
    assert error == 0
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(target, np.broadcast_to(expected, target.shape), rtol=1e-5)  # float32
    uniform, _ = held_out.target(RandomStrategy(1), seed=0)
    np.testing.assert_allclose(uniform, 1 / ITEMS, atol=1e-8)


def test_target_of_later_positions_agrees_with_enumeration(held_out: HeldOut):
    logits = np.random.default_rng(0).normal(size=ITEMS)
    exact = marginals_of(logits, SIZE)[held_out.position]
    target, error = held_out.target(Fixed(logits, SIZE), seed=0)
    assert np.abs(target - exact).max() < 6 * error
    mean_over_rows = np.stack([target[held_out.position == k].mean(axis=0) for k in range(SIZE)])
    np.testing.assert_allclose(mean_over_rows, marginals_of(logits, SIZE), atol=1e-3)
    uniform, error = held_out.target(RandomStrategy(SIZE), seed=0)
    assert np.abs(uniform - 1 / ITEMS).max() < 6 * error
    np.testing.assert_allclose(uniform[held_out.position == 0], 1 / ITEMS, atol=1e-8)


def test_a_strategy_may_fill_more_positions_than_the_log_has(single: FittedShoppers):
    held_out = HeldOut.from_run(single, seed=0)
    one, more = (held_out.target(Fixed(np.arange(ITEMS) / 9, size), seed=0)[0] for size in (1, 3))
    np.testing.assert_allclose(one, more, atol=1e-7)


def test_uniform_strategy_on_a_uniform_log_is_worth_the_logged_mean(single: FittedShoppers):
    report = evaluate(single, [RandomStrategy(1)], seed=1)
    mean = single.read_part("estimate")["clicked"].mean()
    for name in ("ips", "snips", "ips_clip(5)", "sg-ips(0.1)"):
        assert report["figures"][f"{name}.random"]["value"] == pytest.approx(mean, abs=1e-9)
    assert report["figures"]["logged"]["value"] == mean
    seen = report["diagnostics"]["random"]
    assert (seen["ess"], seen["mean_weight"]) == pytest.approx((seen["n"], 1.0))
    assert (seen["unsupported_mass"], seen["marginal_error"]) == (0, 0)


def test_report_has_every_estimator_with_its_interval_and_is_json(run: FittedShoppers):
    strategies = [RandomStrategy(SIZE), Fixed(np.linspace(-1, 1, ITEMS), SIZE)]
    report = evaluate(run, strategies)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    names = {f"{e}.{s.name}" for e in ESTIMATORS for s in strategies} | {"logged", "dr.fixed_minus_random"}
    assert set(report["figures"]) == names
    for seen in report["figures"].values():
        assert seen["low"] <= seen["value"] <= seen["high"]
        assert seen["n"] == round(0.96 * 6_000)
        assert seen["unit"] == "clicks per impression"
    assert (report["refused"], report["forced"], report["seeds"]) == ({}, False, [0])


def test_a_clone_of_the_logging_strategy_has_weights_near_one(tmp_path: Path):
    generator = np.random.default_rng(0)
    impressions, items = small_tables(ITEMS, 1, n_rows=20_000)
    chance = generator.dirichlet(np.full(ITEMS, 5.0))
    item = generator.choice(ITEMS, 20_000, p=chance)
    impressions["item_id"] = items["item_id"].to_numpy()[item]
    impressions["clicked"] = (generator.random(20_000) < 0.05 + 0.1 * chance[item]).astype(np.int8)
    impressions["propensity"] = chance[item]
    shoppers = shoppers_of(write(tmp_path / "logs", impressions=impressions, items=items), 1)
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


def test_intervals_hold_the_known_truth(world_and_run: tuple[PlantedWorld, FittedShoppers]):
    world, run = world_and_run
    appeal = np.log(world.attraction(torch.arange(500), torch.arange(ITEMS).expand(500, -1)).numpy().mean(axis=0))
    good = Fixed(2 * (appeal - appeal.mean()), SIZE, "good")
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


def nearly_certain(size: int) -> Fixed:
    logits = np.full(ITEMS, -15.0)
    logits[: size + 1] = np.arange(size + 1, 0, -1) * 5.0
    return Fixed(logits, size, "certain")


def test_a_nearly_deterministic_strategy_is_refused(single: FittedShoppers):
    report = evaluate(single, [RandomStrategy(1), nearly_certain(1)])
    assert list(report["refused"]) == ["certain"]
    rows = len(single.read_part("estimate"))
    assert report["refused"]["certain"].startswith("the effective sample size is ")
    assert f" of {rows} rows, under 100" in report["refused"]["certain"]
    assert not [name for name in report["figures"] if "certain" in name]
    assert report["diagnostics"]["certain"]["ess"] < 100
    assert "dr.random" in report["figures"]


def test_force_gives_the_figures_and_says_so(single: FittedShoppers):
    report = evaluate(single, [RandomStrategy(1), nearly_certain(1)], force=True)
    assert report["forced"]
    assert list(report["refused"]) == ["certain"]
    assert {"dr.certain", "dr.certain_minus_random"} <= set(report["figures"])
    assert not evaluate(single, [RandomStrategy(1)], force=True)["forced"]


def test_without_the_first_strategy_there_is_nothing_to_compare_with(single: FittedShoppers):
    report = evaluate(single, [nearly_certain(1), RandomStrategy(1)])
    assert not [name for name in report["figures"] if "_minus_" in name]


def test_the_seed_decides(run: FittedShoppers):
    strategies = [Fixed(np.linspace(-1, 1, ITEMS), SIZE)]
    first, again, other = (evaluate(run, strategies, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first["figures"]["dr.fixed"] != other["figures"]["dr.fixed"]


def test_strategies_of_one_name_are_refused(run: FittedShoppers):
    with pytest.raises(InputError) as caught:
        evaluate(run, [RandomStrategy(SIZE), RandomStrategy(SIZE)])
    assert str(caught.value) == "ope: two strategies have the same name; got ['random', 'random']"


@pytest.mark.parametrize("change", ["some are missing", "no column"])
def test_a_log_without_propensities_is_refused(tmp_path: Path, change: str):
    impressions, items = small_tables(n_rows=200)
    impressions.loc[190, "propensity"] = np.nan
    if change == "no column":
        impressions = impressions.drop(columns="propensity")
    shoppers = shoppers_of(write(tmp_path / "logs", impressions=impressions, items=items), 3)
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


def test_a_log_that_has_changed_is_refused(tmp_path: Path):
    impressions, items = small_tables(n_rows=200)
    shoppers = shoppers_of(write(tmp_path / "logs", impressions=impressions, items=items), 3)
    write(tmp_path / "logs", impressions=impressions.assign(age=1.0))
    with pytest.raises(InputError, match="the log has changed since the shoppers were fitted"):
        evaluate(shoppers, [RandomStrategy(3)])


# Pages


def pages_of(n: int, seed: int = 0) -> tuple[dict[str, pd.DataFrame], np.ndarray, np.ndarray]:
    """Pages of 3 slots by a Plackett-Luce logging strategy over 6 of 12 items that differ from page to page.

    Returns:
        The tables; the candidates of each page in random order (n, 6); the click probability of items (12,).
    """
    generator = np.random.default_rng(seed)
    impressions, items = small_tables(12, 3, n_rows=n, seed=seed)
    logits, click = 0.6 * generator.normal(size=12), generator.uniform(0.05, 0.5, 12)
    candidates = np.stack([generator.permutation(12)[:6] for _ in range(n)])
    noisy = logits[candidates] + generator.gumbel(size=(n, 6))
    slate = np.take_along_axis(candidates, np.argsort(-noisy, axis=1)[:, :3], 1)
    weight = np.exp(logits)
    left = weight[candidates].sum(axis=1, keepdims=True) - np.cumsum(weight[slate], axis=1) + weight[slate]
    ids = items["item_id"].to_numpy()
    shown = impressions.loc[impressions.index.repeat(3)].reset_index(drop=True)
    shown["position"] = np.tile(np.arange(3), n)
    shown["item_id"] = ids[slate.ravel()]
    shown["propensity"] = (weight[slate] / left).ravel()
    shown["clicked"] = (generator.random(3 * n) < click[slate.ravel()] * 0.8 ** shown["position"]).astype(np.int8)
    pages = pd.DataFrame(
        {
            "visit_id": impressions["visit_id"],
            "page": 0,
            "log_prob_slate": np.log(weight[slate] / left).sum(axis=1),
            "candidates": [ids[row].tolist() for row in candidates],
        }
    )
    return {"impressions": shown, "items": items, "pages": pages}, candidates, click


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> tuple[FittedShoppers, np.ndarray, np.ndarray]:
    tables, candidates, click = pages_of(3_000)
    # In order of time the first 4% of the rows, which are pages of three, belong to the other parts.
    return shoppers_of(write(tmp_path_factory.mktemp("pages"), **tables), 3), candidates, click


def test_pages_are_valued_as_by_hand(paged: tuple[FittedShoppers, np.ndarray, np.ndarray]):
    shoppers, _, _ = paged
    report = evaluate(shoppers, [RandomStrategy(3)], level="page")
    rows, pages = shoppers.read_part("estimate"), read_logs(shoppers.logs).pages
    assert pages is not None
    clicks = rows.groupby("visit_id")["clicked"].sum()
    log_prob = pages.set_index("visit_id").loc[clicks.index, "log_prob_slate"]
    weight = np.exp(-np.log(6 * 5 * 4) - log_prob)  # six candidates, three slots
    n = len(clicks)
    figures = report["figures"]
    assert figures["logged"]["value"] == pytest.approx(clicks.mean())
    assert figures["ips.random"]["value"] == pytest.approx((weight * clicks).mean(), rel=1e-5)
    assert figures["snips.random"]["value"] == pytest.approx((weight * clicks).sum() / weight.sum(), rel=1e-5)
    assert figures["ips_clip(5).random"]["value"] == pytest.approx((weight.clip(upper=5) * clicks).mean(), rel=1e-5)
    assert report["diagnostics"]["random"]["ess"] == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), rel=1e-5)
    assert report["diagnostics"]["random"]["unsupported_mass"] is None
    assert {(seen["n"], seen["unit"]) for seen in figures.values()} == {(n, "clicks per page")}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_page_intervals_hold_the_known_truth(paged: tuple[FittedShoppers, np.ndarray, np.ndarray]):
    shoppers, candidates, click = paged
    good = Fixed(2 * click, 3, "good")
    examined = 0.8 ** np.arange(3)
    truth = {}
    for strategy in (RandomStrategy(3), good):
        logits = 2 * click if strategy is good else np.zeros(12)
        values = []
        for row in candidates[:300]:
            slates, probability = slates_of(logits[row], 3)
            values.append(probability @ (click[row][slates] @ examined))
        truth[strategy.name] = np.mean(values)
    figures = evaluate(shoppers, [RandomStrategy(3), good], level="page")["figures"]
    assert truth["good"] > truth["random"] + 0.03
    for name, value in truth.items():
        for estimator in ("ips", "snips"):
            seen = figures[f"{estimator}.{name}"]
            assert seen["low"] < value < seen["high"], (estimator, name)


def test_page_level_is_refused_and_forced_as_rows_are(paged: tuple[FittedShoppers, np.ndarray, np.ndarray]):
    shoppers, _, _ = paged
    certain = Fixed(np.linspace(20, -20, 12), 3, "certain")
    report = evaluate(shoppers, [RandomStrategy(3), certain], level="page")
    assert list(report["refused"]) == ["certain"]
    assert "ips.certain" not in report["figures"]
    assert "ips.certain" in evaluate(shoppers, [certain], level="page", force=True)["figures"]


def test_pages_of_known_shoppers_are_clustered(tmp_path: Path):
    tables, _, _ = pages_of(900)
    shown = tables["impressions"]
    shown["shopper_id"] = pd.Series([f"s{visit // 9}" for visit in shown["visit_id"]], dtype="str")
    shoppers = shoppers_of(write(tmp_path / "logs", **tables), 3)
    rows, pages = shoppers.read_part("estimate"), read_logs(shoppers.logs).pages
    assert pages is not None
    cluster = _slates(rows, pages, shoppers)[4]
    assert cluster is not None
    assert cluster.tolist() == rows.drop_duplicates("visit_id")["shopper_id"].tolist()
    assert len(set(cluster)) == 96


def test_slates_against_a_page_table_by_hand(tmp_path: Path):
    """Three pages: rows out of order, candidates in another order than the catalog, a page with an empty slot."""
    _, items = small_tables(5)
    start = pd.Timestamp("2026-01-01", tz="UTC")
    shown = [  # visit, page, position, item, clicked, minute
        ("a", 0, 1, "item-3", 1, 0),
        ("a", 0, 0, "item-1", 1, 0),
        ("a", 1, 0, "item-0", 0, 2),
        ("b", 0, 0, "item-4", 0, 1),
        ("b", 0, 2, "item-2", 1, 1),
        ("b", 0, 1, "item-0", 0, 1),
    ]
    impressions = pd.DataFrame(shown, columns=["visit_id", "page", "position", "item_id", "clicked", "minute"])
    impressions["timestamp"] = start + pd.to_timedelta(impressions.pop("minute"), unit="min")
    impressions["age"] = [30.0, 30.0, 31.0, 40.0, 40.0, 40.0]
    impressions["affinity.item-4"] = [0.0, 0.0, 7.0, 9.0, 9.0, 9.0]
    impressions = impressions.assign(shopper_id=pd.Series([None] * 6, dtype="str"), placement="organic")
    pages = pd.DataFrame(
        {
            "visit_id": ["b", "a", "a", "c"],
            "page": [0, 1, 0, 0],
            "log_prob_slate": [-3.0, -1.0, -2.0, -9.0],
            "candidates": [["item-4", "item-2", "item-0"], ["item-0"], ["item-3", "item-1", "item-2"], ["item-2"]],
        }
    )
    shoppers = shoppers_of(write(tmp_path / "logs", impressions=impressions, items=items, pages=pages), 3)
    logs = read_logs(tmp_path / "logs")
    assert logs.impressions is not None
    assert logs.pages is not None
    context, slate, clicks, log_prob, cluster = _slates(logs.impressions, logs.pages, shoppers)
    assert slate.tolist() == [[1, 3, EMPTY], [4, 0, 2], [0, EMPTY, EMPTY]]  # in order of time
    assert clicks.tolist() == [2, 1, 0]
    assert log_prob.tolist() == [-2, -3, -1]
    assert context.mask.int().tolist() == [[0, 1, 1, 1, 0], [1, 0, 1, 0, 1], [1, 0, 0, 0, 0]]
    assert context.affinity[:, 4].tolist() == [0, 9, 7]
    assert context.shopper[:, shoppers.builder.shopper.numeric.index("age")].tolist() == [30, 40, 31]
    assert cluster is None


NEEDED = "expected columns log_prob_slate and candidates without gaps"


@pytest.mark.parametrize("change", ["no table", "no column", "null candidates", "null probability"])
def test_whole_slates_need_the_logged_candidates(tmp_path: Path, change: str):
    tables, _, _ = pages_of(60)
    pages = tables["pages"]
    if change == "no table":
        del tables["pages"]
    elif change == "no column":
        tables["pages"] = pages.drop(columns="candidates")
    elif change == "null candidates":
        pages.loc[7, "candidates"] = None
    else:
        pages.loc[7, "log_prob_slate"] = np.nan
    shoppers = shoppers_of(write(tmp_path / "logs", **tables), 3)
    with pytest.raises(InputError) as caught:
        evaluate(shoppers, [RandomStrategy(3)], level="page")
    assert str(caught.value) == (
        f"{tmp_path}/logs table pages: whole slates cannot be valued: the candidates of the logged pages are unknown; "
        f"{NEEDED}; log them, or estimate by row (--level row), which assumes that positions add up"
    )


def test_a_page_without_its_row_in_the_page_table_is_refused(tmp_path: Path):
    tables, _, _ = pages_of(60)
    tables["pages"] = tables["pages"].drop(index=41)
    shoppers = shoppers_of(write(tmp_path / "logs", **tables), 3)
    with pytest.raises(InputError) as caught:
        evaluate(shoppers, [RandomStrategy(3)], level="page")
    assert str(caught.value) == (
        f"{tmp_path}/logs table pages, visit 41, page 0: a page of the log is missing; "
        "expected every page of the table impressions"
    )


def test_a_slate_with_an_item_that_was_no_candidate_is_refused(tmp_path: Path):
    tables, _, _ = pages_of(60)
    shown = tables["impressions"]["item_id"].iloc[3 * 41]
    left = [item for item in tables["pages"]["candidates"][41] if item != shown]
    tables["pages"].at[41, "candidates"] = left
    shoppers = shoppers_of(write(tmp_path / "logs", **tables), 3)
    with pytest.raises(InputError) as caught:
        evaluate(shoppers, [RandomStrategy(3)], level="page")
    assert str(caught.value) == (
        f"{tmp_path}/logs table pages, visit 41, page 0: a page shows an item that is not among its candidates; "
        f"got '{shown}', expected candidates with everything that could be shown"
    )


def test_slates_of_another_size_are_refused(paged: tuple[FittedShoppers, np.ndarray, np.ndarray]):
    with pytest.raises(InputError) as caught:
        evaluate(paged[0], [RandomStrategy(2)], level="page")
    assert str(caught.value) == "strategy random: slates of another size; got 2, expected 3, as the log's pages"


def test_a_page_log_that_has_changed_is_refused(paged: tuple[FittedShoppers, np.ndarray, np.ndarray]):
    stale = replace(paged[0], logs_digest="0" * 64)
    assert digest(stale.logs) != stale.logs_digest
    with pytest.raises(InputError, match="the log has changed"):
        evaluate(stale, [RandomStrategy(3)], level="page")
