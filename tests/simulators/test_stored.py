"""Encoded logs on disk: read as they were written, in blocks of whole shoppers, with a column more."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hawker.shop.context import ContextBuilder
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.simulators.rows import EncodedLog, Rows, encode_log, encode_piece
from hawker.simulators.stored import LogWriter, StoredLog, blocks, some_units, with_beliefs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(journeys) -> EncodedLog:
    """The journeys, encoded in memory."""
    builder = ContextBuilder.fit(*journeys[:2])
    return encode_log(journeys[0], builder, Lines.from_impressions(journeys[0], load_encoder("hashed:8", CPU)), CPU)


@pytest.fixture
def stored(journeys, tmp_path) -> StoredLog:
    """The journeys on disk, in two pieces."""
    impressions, items, _ = journeys
    builder = ContextBuilder.fit(impressions, items)
    lines = Lines.from_impressions(impressions, load_encoder("hashed:8", CPU))
    writer, early = LogWriter(tmp_path / "log"), impressions["shopper_id"] < "s4"
    for rows in (impressions[early], impressions[~early]):
        writer.add(encode_piece(rows.reset_index(drop=True), builder, lines, impressions["timestamp"].max()))
    return writer.close()


def rows_of(log: EncodedLog) -> Rows:
    return log.rows.take(torch.arange(len(log.rows.shopper)), log.rows.time)


def equal(one: Rows, other: Rows) -> bool:
    """Say whether rows are the same, those of time aside."""
    return all(
        torch.equal(value.nan_to_num(-7), getattr(other, field.name).nan_to_num(-7))
        for field in dataclasses.fields(Rows)
        if isinstance(value := getattr(one, field.name), torch.Tensor)
    )


def test_a_log_is_read_as_it_was_written(stored, whole):
    assert equal(rows_of(stored), whole.rows)
    assert np.array_equal(stored.shopper, whole.shopper)
    assert torch.equal(stored.rows.time.first, whole.rows.time.first)
    assert stored.rows.clicked.dtype == torch.uint8, "narrow on disk"
    bytes_a_row = sum(file.stat().st_size for file in stored.path.iterdir()) / len(whole.rows)
    assert bytes_a_row < 70


def test_what_no_piece_has_is_absent(journeys, tmp_path):
    impressions, items, _ = journeys
    plain = impressions.drop(columns=["converted", "revenue", "copy", "offer"]).assign(placement="organic")
    writer = LogWriter(tmp_path / "log")
    writer.add(encode_piece(plain, ContextBuilder.fit(plain, items), None, plain["timestamp"].max()))
    rows = writer.close().rows
    assert [rows.converted, rows.revenue, rows.line, rows.offer, rows.ad, rows.believed] == [None] * 6


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 3000))
def test_blocks_are_the_log_in_order(whole, size):
    parts = list(blocks(whole, size))
    assert torch.equal(torch.cat([part.item for part in parts]), whole.rows.item)
    assert all(len(part) <= size or len(part.time) == 1 for part in parts)
    alone = dataclasses.replace(whole, rows=dataclasses.replace(whole.rows, time=None))
    assert torch.equal(torch.cat([part.item for part in blocks(alone, size)]), whole.rows.item)


def test_beliefs_stand_beside_the_rows(stored, whole, monkeypatch):
    monkeypatch.setattr("hawker.simulators.stored.BLOCK", 100)

    def believing(rows: Rows, shopper: np.ndarray) -> Rows:
        owner = torch.from_numpy(np.repeat(shopper, rows.time.first.diff()))[rows.page]
        return dataclasses.replace(rows, believed=torch.stack([rows.item, owner], 1).float())

    told, here = with_beliefs(stored, believing), with_beliefs(whole, believing)
    assert isinstance(told, StoredLog)
    assert torch.equal(told.rows.believed, here.rows.believed)
    assert told.rows.believed[:, 1].tolist() == whole.owners().tolist()
    some = told.rows.take(torch.tensor([5, 2]))
    assert torch.equal(some.believed[:, 0].long(), some.item)


def test_of_a_long_log_some_shoppers_are_taken_whole(stored, whole):
    assert equal(some_units(stored, 10**6, 0).rows, whole.rows)
    some = some_units(stored, len(whole.rows) // 4, 0)
    assert 0.15 < len(some.rows) / len(whole.rows) < 0.35
    whole_rows = np.bincount(whole.owners())
    counts = np.bincount(some.owners(), minlength=len(whole_rows))
    assert set(np.unique(counts[counts > 0] - whole_rows[counts > 0])) == {0}
    assert len(some.rows.time) == len(some.shopper)
    again, other = (some_units(stored, len(whole.rows) // 4, seed) for seed in (0, 1))
    assert np.array_equal(again.shopper, some.shopper)
    assert not np.array_equal(other.shopper, some.shopper)
