import csv
import gzip
import json
import lzma

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hawker.shop import importers
from hawker.shop.errors import InputError
from hawker.shop.importers import FORMATS, import_cdnow, import_obd, shipped
from hawker.shop.logs import affinity_columns, feature_columns, read_logs
from hawker.shop.tables import QUARANTINE

LOGS = [
    ("random", "all", 80, 38),
    ("random", "men", 34, 46),
    ("random", "women", 46, 46),
    ("bts", "all", 80, 42),
    ("bts", "men", 34, 69),
    ("bts", "women", 46, 46),
]


@pytest.fixture
def small(tmp_path):
    """The first 400 rows of random/men in the data set's layout, uncompressed; returns its folder."""
    folder = tmp_path / "obd" / "random" / "men"
    folder.mkdir(parents=True)
    source = shipped("obd") / "random" / "men"
    with lzma.open(source / "men.csv.xz", "rt") as file:
        (folder / "men.csv").write_text("".join(line for line, _ in zip(file, range(401), strict=False)))
    with lzma.open(source / "item_context.csv.xz", "rt") as file:
        (folder / "item_context.csv").write_text(file.read())
    return tmp_path / "obd"


def import_small(source, out):
    return import_obd(source, out, campaign="men")


def edit(small, row, column, value):
    """Replace a cell of the log; a row counts from 0."""
    path = small / "random" / "men" / "men.csv"
    lines = path.read_text().splitlines()
    cells = lines[row + 1].split(",")
    cells[lines[0].split(",").index(column)] = value
    lines[row + 1] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")
    return lines[row + 1]


@pytest.mark.parametrize(("strategy", "campaign", "n_items", "clicks"), LOGS)
def test_shipped_obd_comes_back_cell_by_cell(tmp_path, strategy, campaign, n_items, clicks):
    report = import_obd(shipped("obd"), tmp_path / "logs", strategy=strategy, campaign=campaign)
    assert (report.rows, report.quarantined, report.tables["items"]) == (10_000, 0, n_items)
    logs = read_logs(tmp_path / "logs")
    shown, items = logs.impressions, logs.items
    with lzma.open(shipped("obd") / strategy / campaign / f"{campaign}.csv.xz", "rt") as file:
        source = pd.read_csv(file, index_col=0)
    source = source.iloc[shown["visit_id"]].reset_index(drop=True)
    assert shown["clicked"].sum() == clicks
    np.testing.assert_array_equal(shown["clicked"], source["click"])
    np.testing.assert_array_equal(shown["position"], source["position"] - 1)
    np.testing.assert_array_equal(shown["propensity"], source["propensity_score"])
    np.testing.assert_array_equal(shown["item_id"].astype(int), source["item_id"])
    np.testing.assert_array_equal(shown["timestamp"], pd.to_datetime(source["timestamp"], format="ISO8601"))
    assert set(shown["position"]) == {0, 1, 2}
    assert shown["shopper_id"].isna().all()
    assert not {"converted", "revenue"} & set(shown)
    assert feature_columns(shown) == [f"user_feature_{i}" for i in range(4)]
    for feature in feature_columns(shown):
        assert shown[feature].dtype == "category"
        assert (shown[feature].astype("str") == source[feature]).all()
    affinities = affinity_columns(shown)
    assert set(affinities) == set(items["item_id"]) == {str(i) for i in range(n_items)}
    for item, column in affinities.items():
        np.testing.assert_array_equal(shown[column], source[f"user-item_affinity_{item}"].astype("float32"))
    assert items["item_feature_0"].dtype == "float64"


def test_meta_says_what_the_log_lacks(tmp_path, small):
    report = import_small(small, tmp_path / "logs")
    meta = json.loads((tmp_path / "logs" / "meta.json").read_text())
    assert meta["source"]["strategy"] == "random"
    assert meta["source"]["licence"].startswith("CC BY 4.0")
    assert meta["rows"] == {"impressions": 400, "items": 34}
    assert meta["notes"] == list(report.notes)
    assert any("converted and revenue: not recorded" in note for note in report.notes)


def test_import_by_blocks_equals_import_at_once(tmp_path, small, monkeypatch):
    edit(small, 77, "click", "2")
    import_small(small, tmp_path / "whole")
    monkeypatch.setattr(importers, "_BLOCK_BYTES", 16_384)  # about 40 rows
    report = import_small(small, tmp_path / "blocks")
    assert (report.rows, report.quarantined) == (399, 1)
    one, two = read_logs(tmp_path / "whole"), read_logs(tmp_path / "blocks")
    pd.testing.assert_frame_equal(one.impressions, two.impressions)
    pd.testing.assert_frame_equal(one.items, two.items)
    bad = [pd.read_parquet(tmp_path / name / QUARANTINE) for name in ("whole", "blocks")]
    pd.testing.assert_frame_equal(*bad)


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_compressed_logs_are_the_same_logs(tmp_path, small, suffix):
    import_small(small, tmp_path / "plain")
    for path in list((small / "random" / "men").iterdir()):
        text = path.read_bytes()
        packed = {".xz": lzma.compress, ".gz": gzip.compress, ".zst": lambda x: pa.compress(x, "zstd", asbytes=True)}
        path.with_name(path.name + suffix).write_bytes(packed[suffix](text))
        path.unlink()
    import_small(small, tmp_path / "packed")
    assert read_logs(tmp_path / "plain").digest == read_logs(tmp_path / "packed").digest


def test_the_unnamed_index_column_may_be_absent(tmp_path, small):
    import_small(small, tmp_path / "with")
    for path in (small / "random" / "men").iterdir():
        rows = list(csv.reader(path.read_text().splitlines()))
        path.write_text("".join(",".join(row[1:]) + "\n" for row in rows))
    import_small(small, tmp_path / "without")
    assert read_logs(tmp_path / "with").digest == read_logs(tmp_path / "without").digest


BAD_CELLS = [
    ("click", "2", "clicked: bad value, expected 0 or 1"),
    ("click", "", "clicked: missing value, expected a value"),
    ("click", "yes", "clicked: bad value, expected a number"),
    ("propensity_score", "0", "propensity: bad value, expected 0 < propensity <= 1"),
    ("position", "0", "position: bad value, expected a whole number >= 0"),
    ("item_id", "34", "item_id: unknown item, expected an item_id of the items table"),
    ("timestamp", "2019-11-24", "timestamp: bad value, expected a time with its zone"),
    ("user-item_affinity_3", "inf", "affinity.3: bad value, expected a finite number or none"),
]


@pytest.mark.parametrize(("column", "value", "reason"), BAD_CELLS)
def test_bad_row_goes_to_quarantine(tmp_path, small, column, value, reason):
    line = edit(small, 30, column, value)
    report = import_small(small, tmp_path / "logs")
    assert (report.rows, report.quarantined) == (399, 1)
    assert 30 not in set(read_logs(tmp_path / "logs").impressions["visit_id"])
    (bad,) = pd.read_parquet(tmp_path / "logs" / QUARANTINE).to_dict("records")
    assert (bad["file"], bad["row"], bad["raw"]) == ("men.csv", 30, line)
    assert reason in bad["reason"]


def test_torn_row_goes_to_quarantine(tmp_path, small):
    path = small / "random" / "men" / "men.csv"
    lines = path.read_text().splitlines()
    lines[6] = lines[6].rpartition(",")[0]
    path.write_text("\n".join(lines))
    report = import_small(small, tmp_path / "logs")
    assert (report.rows, report.quarantined) == (399, 1)
    (bad,) = pd.read_parquet(tmp_path / "logs" / QUARANTINE).to_dict("records")
    assert (bad["row"], bad["raw"], bad["reason"]) == (5, lines[6], "43 cells, expected 44")
    assert set(read_logs(tmp_path / "logs").impressions["visit_id"]) == set(range(400)) - {5}


def test_unusable_source(tmp_path, small):
    men = small / "random" / "men"

    def refusal(source=small, **options):
        with pytest.raises(InputError) as caught:
            import_obd(source, tmp_path / "out", **{"campaign": "men", **options})
        assert not (tmp_path / "out").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["obd"]
        return str(caught.value)

    assert "no such file" in refusal(tmp_path)
    assert "bts/men/men.csv: no such file" in refusal(strategy="bts")
    whole = (men / "men.csv").read_text()
    (men / "men.csv").write_text(whole.replace("click", "clack", 1))
    assert "men.csv: the column click is missing" in refusal()
    (men / "men.csv").write_text(whole.partition("\n")[0] + "\n")
    assert "no row is valid" in refusal()
    (men / "men.csv").write_text("")
    assert "no header" in refusal()
    (men / "men.csv").unlink()
    (men / "men.csv.xz").write_bytes(lzma.compress(whole.encode())[:-2000])
    assert "the file cannot be read" in refusal()
    (men / "men.csv.xz").write_bytes(b"not xz")
    assert "the file cannot be read" in refusal()


def test_import_that_dies_leaves_what_was_there(tmp_path, small, monkeypatch):
    out = tmp_path / "logs"
    import_small(small, out)
    before = read_logs(out).digest
    monkeypatch.setattr(importers, "_BLOCK_BYTES", 16_384)
    blocks = importers._obd_block
    calls = iter(range(3))

    def die(*arguments):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return blocks(*arguments)

    monkeypatch.setattr(importers, "_obd_block", die)
    with pytest.raises(KeyboardInterrupt):
        import_small(small, out)
    assert read_logs(out).digest == before
    with pytest.raises(KeyboardInterrupt):
        import_small(small, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"obd", "logs"}


@pytest.mark.parametrize(("sample", "customers", "purchases"), [(False, 23_570, 69_659), (True, 2_357, 6_919)])
def test_shipped_cdnow(tmp_path, sample, customers, purchases):
    report = FORMATS["cdnow"](shipped("cdnow"), tmp_path / "logs", sample=sample)
    assert (report.rows, report.quarantined) == (purchases, 0)
    logs = read_logs(tmp_path / "logs")
    assert logs.impressions is None
    assert len(logs.events) == purchases
    assert logs.events["shopper_id"].nunique() == customers
    assert logs.events["timestamp"].min() == pd.Timestamp("1997-01-01", tz="UTC")
    assert logs.events["timestamp"].max() == pd.Timestamp("1998-06-30", tz="UTC")
    assert set(logs.events["kind"]) == {"purchase"}


def test_cdnow_sample_is_part_of_the_master(tmp_path):
    import_cdnow(shipped("cdnow"), tmp_path / "master")
    import_cdnow(shipped("cdnow"), tmp_path / "sample", sample=True)
    master, sample = (read_logs(tmp_path / name).events for name in ("master", "sample"))
    part = master[master["shopper_id"].isin(sample["shopper_id"])].reset_index(drop=True)
    order = ["shopper_id", "timestamp", "revenue", "units"]
    pd.testing.assert_frame_equal(
        part.sort_values(order, ignore_index=True), sample.sort_values(order, ignore_index=True)
    )


def test_cdnow_bad_rows(tmp_path):
    lines = [
        " 00001 19970101  1   11.77",
        " 00002 19971301  1   12.00",
        " 00003 19970102  2",
        " 00004 19970101  1 -2.0",
    ]
    (tmp_path / "CDNOW_master.txt").write_text("\r\n".join(lines))
    report = import_cdnow(tmp_path, tmp_path / "logs")
    assert (report.rows, report.quarantined) == (1, 3)
    bad = pd.read_parquet(tmp_path / "logs" / QUARANTINE).set_index("row")["reason"]
    assert bad[2] == "3 cells, expected 4"
    assert bad[1] == "timestamp: bad value, expected a date such as 19970131"
    assert bad[3] == "revenue: bad value, expected a finite number >= 0"
    (tmp_path / "CDNOW_master.txt").write_text("nothing here")
    with pytest.raises(InputError, match="no row is valid"):
        import_cdnow(tmp_path, tmp_path / "logs")
    assert read_logs(tmp_path / "logs").events["shopper_id"].tolist() == ["00001"]


def test_shipped_names():
    assert set(FORMATS) == {"obd", "cdnow"}
    for name in FORMATS:
        assert (shipped(name) / "README.md").is_file()
    with pytest.raises(InputError, match="did you mean 'obd'"):
        shipped("obp")
