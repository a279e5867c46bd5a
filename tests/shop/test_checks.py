import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hawker.shop.checks import check_logs, clean_logs
from hawker.shop.errors import InputError
from hawker.shop.importers import import_cdnow, import_obd, shipped
from hawker.shop.logs import read_logs
from hawker.shop.tables import QUARANTINE


def texts(report, name):
    return [finding.text for finding in report.findings if finding.name == name]


def level(report, name):
    (finding,) = [finding for finding in report.findings if finding.name == name]
    return finding.level


@pytest.fixture(scope="module")
def obd(tmp_path_factory):
    """A function of (strategy, campaign) that imports a shipped log and checks it."""

    def check(strategy, campaign):
        out = tmp_path_factory.mktemp("obd") / "logs"
        import_obd(shipped("obd"), out, strategy=strategy, campaign=campaign)
        return check_logs(out)

    return check


def test_random_log_is_sound(obd):
    report = obd("random", "all")
    assert report.level == "ok"
    figures = report.figures
    assert (figures["impressions.rows"]["value"], figures["impressions.bad_rows"]["value"]) == (10_000, 0)
    assert (figures["clicks"]["value"], figures["impressions.visits"]["value"]) == (38, 10_000)
    assert figures["ctr"]["value"] == pytest.approx(0.0038)
    # Wilson by hand: centre (k + z^2/2) / (n + z^2), half width z sqrt(k (n - k) / n + z^2/4) / (n + z^2)
    n, k, z = 10_000, 38, 1.959964
    centre, half = (k + z**2 / 2) / (n + z**2), z * np.sqrt(k * (n - k) / n + z**2 / 4) / (n + z**2)
    assert (figures["ctr"]["low"], figures["ctr"]["high"]) == pytest.approx((centre - half, centre + half), rel=1e-5)
    assert figures["propensity.mean_inverse"]["value"] == pytest.approx(80.0)
    assert figures["items_never_shown"]["value"] == 0
    assert "shoppers unknown" in texts(report, "impressions.extent")[0]


@pytest.mark.parametrize(
    ("campaign", "mean", "error", "verdict"),
    [("all", 80.8887, 4.309, "ok"), ("men", 32.0727, 1.211, "ok"), ("women", 144.1727, 100.013, "warn")],
)
def test_propensities_of_thompson_sampling(obd, campaign, mean, error, verdict):
    report = obd("bts", campaign)
    figure = report.figures["propensity.mean_inverse"]
    assert figure["value"] == pytest.approx(mean, abs=1e-3)
    assert figure["high"] - figure["value"] == pytest.approx(1.96 * error, rel=1e-3)
    assert level(report, "propensity") == verdict
    # In bts/women one row of p = 1e-6 makes 69% of the sum: 144 against 46 items proves nothing, and the text says so.
    assert ("makes 69% of the sum" in texts(report, "propensity")[0]) == (campaign == "women")


def test_thompson_sampling_moves_what_it_shows(obd):
    report = obd("bts", "all")
    assert level(report, "drift.items") == "warn"
    assert level(report, "drift.features") == level(report, "drift.ctr") == "ok"
    assert [report.figures[f"items_never_shown.position_{k}"]["value"] for k in range(3)] == [0, 1, 0]
    assert texts(report, "support") == ["all 80 items were shown, though never: 1 at position 1"]


def test_purchases_are_checked_too(tmp_path):
    import_cdnow(shipped("cdnow"), tmp_path / "logs", sample=True)
    report = check_logs(tmp_path / "logs")
    assert report.figures["events.shoppers"]["value"] == 2_357
    assert report.figures["events.repeats"]["value"] == 21
    assert report.level == "warn"


def test_report_is_json(write_logs, impressions, items):
    path = write_logs(impressions=impressions, items=items)
    values = json.loads(json.dumps(check_logs(path).to_dict(), allow_nan=False))
    assert values["digest"] == read_logs(path).digest
    assert values["figures"]["ctr"].keys() == {"value", "low", "high", "n", "unit"}
    assert {finding["level"] for finding in values["findings"]} <= {"ok", "warn", "bad"}


def test_every_broken_rule_is_counted(write_logs, impressions, items):
    impressions.loc[[4, 9, 11], "clicked"] = 3
    impressions.loc[4, "propensity"] = 0
    impressions.loc[50, "item_id"] = "77"
    twice = pd.concat([impressions, impressions.iloc[[20]]], ignore_index=True)
    report = check_logs(write_logs(impressions=twice, items=items))
    assert report.level == "bad"
    assert texts(report, "impressions.clicked") == [
        "bad value: 3 of 61 rows, expected 0 or 1; the first is row 4 with 3",
    ]
    assert (
        "1 of 61 rows, expected 0 < propensity <= 1; the first is row 4 with 0.0"
        in texts(report, "impressions.propensity")[0]
    )
    assert "unknown item: 1 of 61 rows" in texts(report, "impressions.item_id")[0]
    assert "duplicate row: 1 of 61 rows" in texts(report, "impressions.visit_id")[0]
    assert report.figures["impressions.bad_rows"]["value"] == 5
    assert report.figures["impressions.rows"]["value"] == 61


def test_future_rows_and_repeats_are_flagged(write_logs, impressions, items):
    later = impressions.copy()
    later["timestamp"] += pd.Timedelta(days=365_00)
    again = impressions.iloc[:6].assign(visit_id=lambda f: f["visit_id"] + 1_000)
    report = check_logs(write_logs(impressions=later, items=items))
    assert "60 rows lie in the future" in texts(report, "impressions.timestamp")[0]
    report = check_logs(write_logs(impressions=pd.concat([impressions, again]), items=items))
    assert report.figures["impressions.repeats"]["value"] == 6


def test_clean_keeps_the_rest_and_the_reasons(write_logs, impressions, items, tmp_path):
    impressions.loc[[4, 9], "clicked"] = 3
    impressions.loc[4, "propensity"] = 0
    path = write_logs(impressions=impressions, items=items)
    report = clean_logs(path, tmp_path / "clean")
    assert (report.rows, report.quarantined) == ({"items": 4, "impressions": 58}, 2)
    bad = pd.read_parquet(tmp_path / "clean" / QUARANTINE)
    assert bad["row"].tolist() == [4, 9]
    assert bad["reason"][0] == (
        "clicked: bad value, expected 0 or 1; propensity: bad value, expected 0 < propensity <= 1"
    )
    assert json.loads(bad["raw"][1])["clicked"] == 3
    logs = read_logs(tmp_path / "clean")
    pd.testing.assert_frame_equal(
        logs.impressions, impressions.drop(index=[4, 9]).reset_index(drop=True).astype({"clicked": "int8"})
    )
    again = clean_logs(tmp_path / "clean", tmp_path / "again")
    assert again.quarantined == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "again" / QUARANTINE), bad)
    assert check_logs(tmp_path / "again").level != "bad"


def test_clean_of_a_bad_item_takes_its_impressions_along(write_logs, impressions, items, tmp_path):
    items.loc[0, "price"] = -1.0
    path = write_logs("csv", impressions=impressions, items=items)
    report = clean_logs(path, tmp_path / "clean")
    assert report.rows == {"items": 3, "impressions": 45}
    assert "affinity.10" not in read_logs(tmp_path / "clean").impressions
    assert "affinity.10: left out" in (tmp_path / "clean" / "meta.json").read_text()
    assert pd.read_parquet(tmp_path / "clean" / QUARANTINE)["file"].value_counts().to_dict() == {
        "impressions.csv": 15,
        "items.csv": 1,
    }


def test_clean_with_nothing_left_writes_nothing(write_logs, impressions, items, tmp_path):
    path = write_logs(impressions=impressions.assign(clicked=2), items=items)
    assert check_logs(path).figures["impressions.bad_rows"]["value"] == 60
    with pytest.raises(InputError, match="no row is valid"):
        clean_logs(path, tmp_path / "clean")
    assert not list(tmp_path.iterdir())


CORRUPTION = st.sampled_from(
    [
        ("visit_id", None),
        ("page", -3),
        ("position", 0.25),
        ("timestamp", "soon"),
        ("timestamp", None),
        ("item_id", "unheard of"),
        ("placement", "banner"),
        ("clicked", 2),
        ("clicked", "maybe"),
        ("clicked", None),
        ("converted", 7),
        ("revenue", -0.5),
        ("revenue", np.inf),
        ("propensity", 0),
        ("propensity", 1.01),
        ("propensity", "half"),
        ("offer", None),
        ("price_shown", -1),
        ("age", np.inf),
        ("affinity.10", -np.inf),
    ]
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.integers(0, 59), corruption=CORRUPTION, suffix=st.sampled_from(["parquet", "csv"]))
def test_any_one_bad_cell_is_caught_and_nothing_else(
    write_logs, impressions, items, tmp_path_factory, row, corruption, suffix
):
    column, value = corruption
    values = impressions[column].astype("object")
    values[row] = value
    frame = impressions.assign(**{column: values.astype("str") if isinstance(value, str) else values.infer_objects()})
    path = write_logs(suffix, impressions=frame, items=items)
    with pytest.raises(InputError, match=rf"impressions\.{suffix} row {row} column {column}: "):
        read_logs(path)
    assert check_logs(path).figures["impressions.bad_rows"]["value"] == 1
    out = tmp_path_factory.mktemp("clean") / "logs"
    assert clean_logs(path, out).quarantined == 1
    (bad,) = pd.read_parquet(out / QUARANTINE).to_dict("records")
    assert bad["row"] == row
    assert bad["reason"].startswith(f"{column}: ")
    pd.testing.assert_frame_equal(read_logs(out).impressions, impressions.drop(index=row).reset_index(drop=True))
