import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hawker.benchmarks.evaluation import _slates, evaluate
from hawker.policies.baselines import RandomStrategy
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.logs import digest, read_logs
from hawker.simulators.small import small_tables
from hawker.simulators.store import FittedShoppers


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
def paged(tmp_path_factory: pytest.TempPathFactory, log_to) -> tuple[FittedShoppers, np.ndarray, np.ndarray]:
    tables, candidates, click = pages_of(3_000)
    # In order of time the first 4% of the rows, which are pages of three, belong to the other parts.
    return log_to(tmp_path_factory.mktemp("pages"), 3, **tables), candidates, click


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


def test_page_intervals_hold_the_known_truth(paged: tuple[FittedShoppers, np.ndarray, np.ndarray], fixed, slates_of):
    shoppers, candidates, click = paged
    good = fixed(2 * click, 3, "good")
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


def test_page_level_is_refused_and_forced_as_rows_are(paged: tuple[FittedShoppers, np.ndarray, np.ndarray], fixed):
    shoppers, _, _ = paged
    certain = fixed(np.linspace(20, -20, 12), 3, "certain")
    report = evaluate(shoppers, [RandomStrategy(3), certain], level="page")
    assert list(report["refused"]) == ["certain"]
    assert "ips.certain" not in report["figures"]
    assert "ips.certain" in evaluate(shoppers, [certain], level="page", force=True)["figures"]


def test_pages_of_known_shoppers_are_clustered(tmp_path: Path, log_to):
    tables, _, _ = pages_of(900)
    shown = tables["impressions"]
    shown["shopper_id"] = pd.Series([f"s{visit // 9}" for visit in shown["visit_id"]], dtype="str")
    shoppers = log_to(tmp_path / "logs", 3, **tables)
    rows, pages = shoppers.read_part("estimate"), read_logs(shoppers.logs).pages
    assert pages is not None
    cluster = _slates(rows, pages, shoppers)[4]
    shopper = rows.drop_duplicates("visit_id")["shopper_id"].to_numpy()
    assert len({*zip(cluster, shopper, strict=True)}) == len({*cluster}) == len({*shopper}) == 96


def test_pages_of_one_shopper_are_one_observation(tmp_path: Path, log_to):
    """Every page six times over: by one shopper, or by nobody knows whom."""
    tables, _, _ = pages_of(400)
    often = dict(tables)
    for name in ("impressions", "pages"):
        copies = [tables[name].assign(visit_id=tables[name]["visit_id"] + 400 * i) for i in range(6)]
        often[name] = pd.concat(copies, ignore_index=True)
    shopper = pd.Series([f"s{visit % 400}" for visit in often["impressions"]["visit_id"]], dtype="str")
    known = {**often, "impressions": often["impressions"].assign(shopper_id=shopper)}
    seen, blind = (
        evaluate(log_to(tmp_path / name, 3, **log), [RandomStrategy(3)], level="page")["figures"]
        for name, log in (("known", known), ("unknown", often))
    )
    for name in ("logged", "ips.random", "snips.random"):
        wide, narrow = (figures[name]["high"] - figures[name]["low"] for figures in (seen, blind))
        assert wide > 1.8 * narrow, name


def test_slates_against_a_page_table_by_hand(tmp_path: Path, log_to):
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
    shoppers = log_to(tmp_path / "logs", 3, impressions=impressions, items=items, pages=pages)
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
    assert cluster.tolist() == [0, 1, 0]


def test_rows_of_one_page_are_not_valued_one_by_one(paged: tuple[FittedShoppers, np.ndarray, np.ndarray]):
    """Their propensities are given what stands above them; the target's marginals are not."""
    shoppers, _, _ = paged
    with pytest.raises(InputError) as caught:
        evaluate(shoppers, [RandomStrategy(3)])
    assert str(caught.value) == (
        f"{shoppers.logs} table impressions: rows of one page cannot be valued one by one: their propensities depend "
        "on what stands above; expected one row per page; value whole slates with --level page"
    )


NEEDED = "expected columns log_prob_slate and candidates without gaps"


@pytest.mark.parametrize("change", ["no table", "no column", "null candidates", "null probability"])
def test_whole_slates_need_the_logged_candidates(tmp_path: Path, change: str, log_to):
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
    shoppers = log_to(tmp_path / "logs", 3, **tables)
    with pytest.raises(InputError) as caught:
        evaluate(shoppers, [RandomStrategy(3)], level="page")
    assert str(caught.value) == (
        f"{tmp_path}/logs table pages: whole slates cannot be valued: the candidates of the logged pages are unknown; "
        f"{NEEDED}; log them, or estimate by row (--level row), which assumes that positions add up"
    )


def test_a_page_without_its_row_in_the_page_table_is_refused(tmp_path: Path, log_to):
    tables, _, _ = pages_of(60)
    tables["pages"] = tables["pages"].drop(index=41)
    shoppers = log_to(tmp_path / "logs", 3, **tables)
    with pytest.raises(InputError) as caught:
        evaluate(shoppers, [RandomStrategy(3)], level="page")
    assert str(caught.value) == (
        f"{tmp_path}/logs table pages, visit 41, page 0: a page of the log is missing; "
        "expected every page of the table impressions"
    )


def test_a_slate_with_an_item_that_was_no_candidate_is_refused(tmp_path: Path, log_to):
    tables, _, _ = pages_of(60)
    shown = tables["impressions"]["item_id"].iloc[3 * 41]
    left = [item for item in tables["pages"]["candidates"][41] if item != shown]
    tables["pages"].at[41, "candidates"] = left
    shoppers = log_to(tmp_path / "logs", 3, **tables)
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
