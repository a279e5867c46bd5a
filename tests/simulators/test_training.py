"""Batches of whole shoppers, and members trained side by side."""

import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.context import ContextBuilder
from hawker.shop.language import HashedEncoder
from hawker.shop.lines import Lines
from hawker.simulators import training
from hawker.simulators.config import FitConfig
from hawker.simulators.fitting import fit_ensemble
from hawker.simulators.likelihood import negative_log_likelihood, predict_rows
from hawker.simulators.rows import Rows, Timeline, encode_log
from hawker.simulators.small import small_tables
from hawker.simulators.training import shopper_batches

CPU = torch.device("cpu")


def numbered(lengths: list[int]) -> Rows:
    """Return rows of shoppers with so many pages, of one to three rows each; an item is the number of its row."""
    first = torch.tensor([0, *lengths]).cumsum(0)
    n = int(first[-1])
    page = torch.repeat_interleave(torch.arange(n), torch.arange(n) % 3 + 1)
    row = torch.arange(len(page))
    time = Timeline(first, *[torch.arange(n).float() for _ in range(5)])
    return Rows(torch.zeros(n, 1), page, row, row, row.float(), row.float(), time=time)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    size=st.integers(1, 300),
    seed=st.one_of(st.none(), st.integers(0, 9)),
    data=st.data(),
)
def test_batches_hold_every_drawn_shopper_once_and_whole(lengths, size, seed, data):
    rows = numbered(lengths)
    units = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=60))
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    found: list[tuple[int, ...]] = []
    for batch in shopper_batches(rows, torch.tensor(units, dtype=torch.long), size, generator, CPU):
        ends = torch.searchsorted(batch.page, batch.time.first)
        assert len(ends) == len(batch.time) + 1 > 1
        # A page's gap is its number in the log: the timeline went along with the rows.
        assert batch.time.gap[batch.page].tolist() == rows.page[batch.item].tolist()
        found += [tuple(own.tolist()) for own in batch.item.tensor_split(ends[1:-1])]
    ends = torch.searchsorted(rows.page, rows.time.first).tolist()
    assert sorted(found) == sorted(tuple(range(ends[unit], ends[unit + 1])) for unit in units)


def test_batches_are_of_about_the_size_asked_for():
    rows = numbered([1 + i % 7 for i in range(400)])
    sizes = [
        len(batch) for batch in shopper_batches(rows, torch.arange(400), 200, torch.Generator().manual_seed(0), CPU)
    ]
    assert max(sizes) < 400
    assert np.mean(sizes) > 100
    assert len(set(sizes)) > 3


def test_one_long_shopper_is_not_padded_to_by_all():
    """The padding of a batch stays within a few times its rows."""
    rows = numbered([5000, *([2] * 3000)])
    for generator in (None, torch.Generator().manual_seed(0)):
        for batch in shopper_batches(rows, torch.arange(3001), 1000, generator, CPU):
            count = batch.time.first[1:] - batch.time.first[:-1]
            assert len(count) * int(count.max()) <= max(4 * len(batch), 5000)


def test_batches_come_in_an_order_of_the_generator():
    rows = numbered([1 + i % 7 for i in range(100)])

    def order(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return [batch.item.tolist() for batch in shopper_batches(rows, torch.arange(100), 30, generator, CPU)]

    assert order(0) == order(0) != order(1)


def test_pages_of_nobody_in_particular_come_in_batches_too():
    rows = dataclasses.replace(numbered([1] * 20), time=None)
    units = torch.tensor([3, 3, 7, 19])
    batches = list(shopper_batches(rows, units, 3, torch.Generator().manual_seed(0), CPU))
    assert [len(batch.shopper) for batch in batches] == [3, 1]
    pages = sorted(rows.page[item].item() for batch in batches for item in batch.item)
    assert pages == sorted(page for page in units.tolist() for _ in range(page % 3 + 1))


def test_members_trained_in_processes_of_their_own_are_the_same(monkeypatch: pytest.MonkeyPatch):
    impressions, items = small_tables(n_items=6, n_rows=300)
    impressions["clicked"] = (np.arange(300) % 5 == 0).astype(np.int8)
    builder, config, told = ContextBuilder.fit(impressions, items), FitConfig(members=2, epochs=2), []
    weights = []
    for long in (1 << 30, 1):
        monkeypatch.setattr(training, "LONG", long)
        log = encode_log(impressions, builder, None, CPU)
        ensemble = fit_ensemble(log, builder, 3, config, 0, np.random.default_rng(0), CPU, told.append)
        weights.append(ensemble.state_dict())
    assert len(told) == 4
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name])


def test_a_fit_in_mixed_precision_learns_the_same(monkeypatch: pytest.MonkeyPatch, journeys: tuple[pd.DataFrame, ...]):
    """As on a GPU, with the processor's own bfloat16: every head is there, and weights stay in float32.

    A log as small as this one can end in either of two fits: with another bootstrap (0) a step size larger by 0.4%
    moves clicks by 0.26, in exact arithmetic, too.
    """
    impressions, items, _ = journeys
    builder, config = ContextBuilder.fit(impressions, items), FitConfig(members=1, epochs=3, batch=128)
    lines = Lines.from_impressions(impressions, HashedEncoder())
    log = encode_log(impressions, builder, lines, CPU)
    said, losses = [], []
    for halved in (False, True):
        forced = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=halved)
        monkeypatch.setattr(training, "mixed_precision", lambda device, forced=forced: forced())
        ensemble = fit_ensemble(log, builder, 3, config, 0, np.random.default_rng(1), CPU, lambda line: None, lines, 3)
        assert {value.dtype for value in ensemble.models[0].parameters()} == {torch.float32}
        with torch.no_grad():
            said.append(predict_rows(ensemble.models[0], log.rows))
            losses.append(float(negative_log_likelihood(ensemble.models[0], log.rows, said[-1])))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    for head in ("click", "conversion", "leave", "back"):
        exact, halved = (getattr(each, head) for each in said)
        assert 0 < (exact - halved).square().mean().sqrt() < 0.05, head
