"""Logs encoded in pieces say what logs encoded at once do, whatever the pieces."""

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hawker.benchmarks.bazaar import logging_strategy
from hawker.shop import stream as stream_module
from hawker.shop.context import ContextBuilder
from hawker.shop.errors import InputError
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.shop.logs import read_logs
from hawker.shop.stream import open_stream
from hawker.simulators import streaming
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.diary import write_logs as write_diary
from hawker.simulators.fit import fit
from hawker.simulators.rows import NUMBERS, EncodedLog, encode_log, encode_piece
from hawker.simulators.split import PARTS, three_way
from hawker.simulators.streaming import EncodedParts, encode_parts
from hawker.simulators.support import Support

CPU = torch.device("cpu")
SHARES = (0.5, 0.25, 0.25)


def shuffled(tables: tuple[pd.DataFrame, ...], write_logs, path: Path, group: int = 37) -> Path:
    """Write a log whose rows are in no order, in row groups of a few rows."""
    logs = write_logs(path, tables)
    mixed = tables[0].sample(frac=1, random_state=1)
    mixed.to_parquet(logs / "impressions.parquet", index=False, row_group_size=group)
    return logs


def parts_of(logs: Path, scratch: Path, rows: int, piece: int) -> EncodedParts:
    scratch.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_module, "ROWS", rows)
        patch.setattr(streaming, "PIECE", piece)
        return encode_parts(open_stream(logs), SHARES, 3, load_encoder("hashed:16", CPU), scratch)


def same(one: EncodedLog, other: EncodedLog) -> None:
    """Assert that two logs hold the same rows, wherever they stand."""
    assert np.array_equal(one.shopper, other.shopper)
    assert torch.equal(one.stamp, other.stamp)
    for field in dataclasses.fields(one.rows):
        left, right = getattr(one.rows, field.name), getattr(other.rows, field.name)
        assert (left is None) == (right is None), field.name
        if isinstance(left, torch.Tensor):
            kind = torch.int64 if field.name in NUMBERS else torch.float32
            torch.testing.assert_close(left.to(kind), right.to(kind), rtol=0, atol=0, equal_nan=True)
    if one.rows.time is not None:
        for field in dataclasses.fields(one.rows.time):
            left, right = getattr(one.rows.time, field.name), getattr(other.rows.time, field.name)
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)


def at_once(logs: Path, parts: EncodedParts) -> list[EncodedLog]:
    """Encode the parts of a log that is held whole, and compare all else that was learned from it."""
    read = read_logs(logs)
    part, unit = three_way(read.impressions, SHARES, 3)
    encoder = load_encoder("hashed:16", CPU)
    builder = ContextBuilder.fit(read.impressions[part == 0], read.items, encoder)
    assert parts.builder.shopper == builder.shopper
    lines = Lines.from_impressions(read.impressions, encoder)
    assert (parts.lines is None) == (lines is None)
    assert lines is None or parts.lines.texts == lines.texts
    assert parts.unit == unit
    for i, name in enumerate(PARTS):
        rows = read.impressions[part == i]
        told = {"impressions": len(rows), "clicks": int(rows["clicked"].sum())}
        told |= {"from": str(rows["timestamp"].min()), "to": str(rows["timestamp"].max())}
        assert parts.summaries[name].to_dict() == told
        first = rows.drop_duplicates("shopper_id") if unit == "shopper" else rows.drop_duplicates("visit_id")
        found = parts.arrivals[name]
        keys = ["visit_id", "page", "position", "timestamp"]
        pd.testing.assert_frame_equal(found[keys], first[keys].reset_index(drop=True))
    offers = int(read.impressions["offer"].max()) + 1 if "offer" in read.impressions else 1
    support = Support.from_impressions(read.impressions[part == 0], builder.catalog, lines, offers)
    for field in dataclasses.fields(Support):
        assert torch.equal(getattr(support, field.name), getattr(parts.support, field.name))
    return [encode_log(read.impressions[part == i].reset_index(drop=True), builder, lines, CPU) for i in range(3)]


@pytest.mark.parametrize(("rows", "piece"), [(1 << 17, 1_000_000), (50, 100), (7, 1)])
def test_pieces_of_any_length_give_what_the_whole_log_gives(journeys, write_logs, tmp_path, rows, piece):
    logs = shuffled(journeys, write_logs, tmp_path / "logs")
    parts = parts_of(logs, tmp_path / "scratch", rows, piece)
    for name, whole in zip(PARTS, at_once(logs, parts), strict=True):
        same(parts.logs[name], whole)
        assert torch.equal(parts.logs[name].late_pages(0.3), whole.late_pages(0.3))
        assert np.array_equal(parts.logs[name].owners(), whole.owners())


def test_rows_that_stand_alone(tables, write_logs, tmp_path):
    logs = shuffled(tables, write_logs, tmp_path / "logs")
    parts = parts_of(logs, tmp_path / "scratch", 64, 50)
    assert parts.unit == "time"
    for name, whole in zip(PARTS, at_once(logs, parts), strict=True):
        assert parts.logs[name].rows.time is None
        same(parts.logs[name], whole)


CROWD = st.lists(
    st.tuples(st.none() | st.integers(0, 8), st.integers(0, 3), st.integers(0, 2), st.integers(0, 5)),
    min_size=12,
    max_size=60,
    unique_by=lambda row: row[:3],
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(crowd=CROWD, rows=st.integers(1, 40), piece=st.integers(1, 30), texts=st.booleans(), data=st.data())
def test_whoever_came_in_whatever_order(tables, write_logs, tmp_path_factory, crowd, rows, piece, texts, data):
    """Known and unknown shoppers, visits that are numbers or words, moments that many share."""
    log = tables[0].iloc[: len(crowd)].copy()
    who = [row[0] for row in crowd]
    log["shopper_id"] = pd.Series([None if one is None else f"s{one}" for one in who], dtype="str")
    visit = np.array([(9 if one is None else one) * 10 + row[1] for one, row in zip(who, crowd, strict=True)])
    log["visit_id"] = [f"v{number}" for number in visit] if texts else visit
    log["page"], log["position"] = 0, [row[2] for row in crowd]
    # The visits of strangers begin at moments of their own: where words tie, nothing says which comes first.
    days = [row[3] if one is not None else 10 + row[1] for one, row in zip(who, crowd, strict=True)]
    log["timestamp"] = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(days, unit="D")
    directory = tmp_path_factory.mktemp("crowd")
    logs = shuffled(
        (log.reset_index(drop=True), tables[1]), write_logs, directory / "logs", data.draw(st.integers(1, 9))
    )
    try:
        parts = parts_of(logs, directory / "scratch", rows, piece)
    except InputError as refused:
        with pytest.raises(InputError, match=str(refused)[:40]):
            three_way(read_logs(logs).impressions, SHARES, 3)
        return
    read = read_logs(logs)
    part, _ = three_way(read.impressions, SHARES, 3)
    for i, name in enumerate(PARTS):
        whole = encode_log(read.impressions[part == i].reset_index(drop=True), parts.builder, None, CPU)
        assert np.array_equal(parts.logs[name].shopper, whole.shopper)
        same(parts.logs[name], whole)


def test_a_shopper_with_100_000_rows(journeys, write_logs, tmp_path):
    """More rows than a piece holds, spread over all row groups."""
    n = 100_000
    robot = journeys[0].iloc[:1].loc[lambda log: log.index.repeat(n)].reset_index(drop=True)
    times = pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(n) * 20, unit="s")
    robot = robot.assign(visit_id=[f"r{i // 100}" for i in range(n)], page=np.arange(n) % 100, position=0)
    robot = robot.assign(shopper_id="robot", timestamp=times)
    both = pd.concat([journeys[0], robot], ignore_index=True)
    logs = shuffled((both, *journeys[1:]), write_logs, tmp_path / "logs", 5_000)
    parts = parts_of(logs, tmp_path / "scratch", 9_000, 20_000)
    for name, whole in zip(PARTS, at_once(logs, parts), strict=True):
        same(parts.logs[name], whole)


def test_the_same_shoppers_are_learned_whatever_the_pieces(journeys, write_logs, fast, tmp_path, monkeypatch):
    logs = shuffled(journeys, write_logs, tmp_path / "logs")
    config = dataclasses.replace(fast, epochs=1)
    whole, report = fit(logs, tmp_path / "whole", config, lambda line: None)
    monkeypatch.setattr(stream_module, "ROWS", 60)
    monkeypatch.setattr(streaming, "PIECE", 90)
    small, again = fit(logs, tmp_path / "small", config, lambda line: None)
    assert small.digest == whole.digest, "byte for byte"
    assert again == report


def test_processes_share_a_log_by_its_path(journeys, write_logs, tmp_path):
    logs = shuffled(journeys, write_logs, tmp_path / "logs")
    log = parts_of(logs, tmp_path / "scratch", 100, 100).logs["train"]
    sent = pickle.dumps(log)
    assert len(sent) < 1000
    same(pickle.loads(sent), log)


@pytest.mark.parametrize(
    ("column", "largest", "message"),
    [("position", 1001, "expected numbers from 0 to 1000"), ("offer", 101, "expected numbers from 0 to 100")],
)
def test_numbers_that_are_too_large(journeys, write_logs, tmp_path, column, largest, message):
    log = journeys[0].copy()
    log[column] = log[column].astype("int64")
    log.loc[5, column] = largest
    with pytest.raises(InputError, match=message):
        parts_of(write_logs(tmp_path / "logs", (log, *journeys[1:])), tmp_path / "scratch", 50, 100)


def test_what_shoppers_do_elsewhere_counts_for_their_returns(journeys, write_logs, tmp_path):
    """Events without an exposure: of the log as a whole they are what they are of its pieces."""
    log = journeys[0]
    bought = log.drop_duplicates("shopper_id", keep="last")[["shopper_id", "timestamp"]].iloc[::2]
    bought["timestamp"] += pd.Timedelta(days=2)
    logs = shuffled(journeys, write_logs, tmp_path / "logs")
    plain = parts_of(logs, tmp_path / "plain", 100, 100)
    bought.assign(kind="purchase").to_parquet(logs / "events.parquet", index=False)
    parts, read = parts_of(logs, tmp_path / "scratch", 100, 100), read_logs(logs)
    part, _ = three_way(read.impressions, SHARES, 3)
    came = 0
    for i, name in enumerate(PARTS):
        rows = read.impressions[part == i].reset_index(drop=True)
        whole = encode_piece(rows, parts.builder, parts.lines, rows["timestamp"].max(), read.events)
        same(parts.logs[name], whole)
        here, before = (logs.logs[name].rows.time.returned for logs in (parts, plain))
        came += int((here == 1).sum() - (before == 1).sum())
    in_time = bought["timestamp"] <= log["timestamp"].max()
    assert 0 < came <= in_time.sum(), "who had no visit more has come back now"


MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from hawker.shop import stream
from hawker.shop.language import load_encoder
from hawker.simulators import streaming

stream.ROWS, streaming.PIECE = 1 << 14, 50_000


def anonymous() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


peak = [0.0]


def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)


threading.Thread(target=watch, daemon=True).start()
encoder = load_encoder("hashed:16", torch.device("cpu"))
streaming.encode_parts(stream.open_stream(Path(sys.argv[1])), (0.5, 0.25, 0.25), 3, encoder, Path(sys.argv[2]))
print(peak[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's own account")
def test_encoding_a_long_log_takes_the_memory_of_a_short_one(tmp_path):
    world = BazaarWorld(load_bazaar(None), CPU)
    peaks, rows = [], []
    for shoppers in (300, 3_000):
        logs, scratch = tmp_path / f"logs{shoppers}", tmp_path / f"scratch{shoppers}"
        strategy = logging_strategy(world, "popularity")
        rows.append(write_diary(world, strategy, logs, shoppers, 56, 1)["rows"]["impressions"])
        # In order of time, so that every shopper is spread over the whole file.
        impressions = pd.read_parquet(logs / "impressions.parquet").sort_values("timestamp")
        (logs / "checksums.json").unlink()
        impressions.to_parquet(logs / "impressions.parquet", index=False, row_group_size=20_000)
        scratch.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(logs), str(scratch)], capture_output=True, text=True, check=True
        )
        peaks.append(float(done.stdout))
    assert rows[1] > 9 * rows[0] > 9 * 45_000
    # A table that is held takes 700 bytes a row: 320 MiB more.
    assert peaks[1] - peaks[0] < 100
