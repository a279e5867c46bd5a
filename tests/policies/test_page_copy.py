"""A bank for serving: the lines and propensities of the copy bank, and the audiences that a log tells."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hawker.benchmarks.bazaar import logging_strategy
from hawker.policies.briefs import Brief
from hawker.policies.copy_bank import Candidate, ChoiceConfig, CopyBank, build_bank
from hawker.policies.guardrails import Guardrails
from hawker.policies.page_copy import NOBODY, PageCopy
from hawker.policies.strategist import BankTable
from hawker.shop.audiences import Audiences
from hawker.shop.catalog import Catalog
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.diary import write_logs

ITEMS = pd.DataFrame({
    "item_id": [f"item-{i}" for i in range(5)],
    "category": ["kitchen", "garden", "kitchen", "toys", "garden"],
    "price": [10.0, 20.0, 30.0, 40.0, 50.0],
})  # fmt: skip
CATALOG = Catalog.from_items(ITEMS)
AUDIENCES = Audiences(("kitchen", "garden"))
LABELS = AUDIENCES.labels
DISCOUNTS = (0.0, 0.2, 0.2, 0.35)
WORTH = {"A quiet pot": 0.02, "Warm wool for cold days": 0.03, "Made to last": 0.01, "Now 20% off": 0.05}
LOGGED = ("Fine for every day", "A quiet pot", "Have a look")


def written(item: str, audience: str, discount: float, line: str, surface: str = "headline") -> Candidate:
    return Candidate(item, Brief(surface, f"Pot of {item}", discount=discount, audience=audience), line)


def bank_of(candidates: list[Candidate]) -> CopyBank:
    def scorer(items, audiences, discounts, lines):
        return np.array([[WORTH.get(line, 0.0) for line in lines], [1.5 * WORTH.get(line, 0.0) for line in lines]])

    return build_bank(candidates, scorer, Guardrails.load(), "a writer", ChoiceConfig(0.02, 0.2))


BANK = bank_of([
    *(written("item-0", "", 0.0, line) for line in ("A quiet pot", "Made to last", "Warm wool for cold days")),
    *(written("item-0", "new", 0.0, line) for line in ("A quiet pot", "Made to last")),
    written("item-0", "", 0.2, "Now 20% off"),
    written("item-1", "returning, likes garden", 0.0, "Made to last"),
    written("item-1", "nobody is called so", 0.0, "Warm wool for cold days"),
    written("item-2", "", 0.2, "Now 20% off"),
    written("item-2", "", 0.2, "A quiet pot"),
    written("item-3", "", 0.0, "Made to last", "promotion"),
    written("not sold any more", "", 0.0, "A quiet pot"),
])  # fmt: skip
LINES = (*LOGGED, *(text for text in BANK.texts("headline") if text not in LOGGED))


@pytest.fixture(scope="module")
def said() -> PageCopy:
    return PageCopy(BANK, "headline", AUDIENCES, DISCOUNTS, CATALOG, LINES)


def pages(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items with some empty slots, audiences and tiers of n pages of four slots."""
    generator = np.random.default_rng(seed)
    items = generator.integers(EMPTY, len(CATALOG), (n, 4))
    return items, generator.integers(len(LABELS), size=n), generator.integers(len(DISCOUNTS), size=n)


def told(items: np.ndarray, audience: np.ndarray, tier: np.ndarray) -> tuple[list[str], list[str], list[float], str]:
    """What ``CopyBank`` wants to know of every slot, an empty one's item being none that it knows."""
    ids = np.array([*CATALOG.item_ids, "no item"])[items.ravel()].tolist()
    whose, off = (np.repeat(part, items.shape[1]) for part in (np.array(LABELS)[audience], np.array(DISCOUNTS)[tier]))
    return ids, whose.tolist(), off.tolist(), "headline"


def test_lines_are_drawn_as_the_bank_draws_them(said):
    items, audience, tier = pages(3_000, 1)
    found = said.choose(items, audience, tier, np.random.default_rng(5))
    expected = BANK.choose(*told(items, audience, tier), np.random.default_rng(5))
    texts = np.array([*LINES, None], object)[found.lines]
    shown = items != EMPTY
    assert (texts[shown] == expected.lines.reshape(items.shape)[shown]).all()
    assert np.exp(found.log_prob[shown]) == pytest.approx(expected.propensity.reshape(items.shape)[shown], abs=1e-12)
    assert (found.lines[~shown] == EMPTY).all()
    assert (found.log_prob[~shown] == 0).all()
    numbers = said.rows(items, audience, tier, found.lines)
    assert (numbers[shown] == expected.number.reshape(items.shape)[shown]).all()
    assert (numbers[~shown] == EMPTY).all()
    assert len(set(texts[shown])) >= 6
    again = said.choose(items, audience, tier, np.random.default_rng(5))
    assert np.array_equal(again.lines, found.lines)
    assert not np.array_equal(said.choose(items, audience, tier, np.random.default_rng(6)).lines, found.lines)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_log_probabilities_are_those_of_the_bank(said, seed: int):
    items, audience, tier = pages(20, seed)
    lines = np.random.default_rng(seed).integers(len(LINES), size=items.shape)
    found = np.exp(said.log_prob(items, audience, tier, lines))
    texts = np.array(LINES, object)[lines].ravel().tolist()
    expected = BANK.probabilities(*told(items, audience, tier), texts).reshape(items.shape)
    shown = items != EMPTY
    assert found[shown] == pytest.approx(expected[shown], abs=1e-12)
    assert (found[~shown] == 0).all()  # nothing is said where nothing is shown
    nothing = np.full_like(items, EMPTY)
    assert np.array_equal(np.exp(said.log_prob(items, audience, tier, nothing)), ~shown)


def test_probabilities_of_a_slot_sum_to_one_and_are_those_of_the_table_that_strategies_train_with(said):
    items, audience, tier = pages(200, 2)
    table = BankTable.of(BANK, CATALOG.item_ids, LABELS, DISCOUNTS, "headline", LINES, torch.device("cpu"))
    total = np.zeros(items.shape)
    for line in range(EMPTY, len(LINES)):
        lines = np.full_like(items, line)
        found = said.log_prob(items, audience, tier, lines)
        other = table.log_prob(*(torch.from_numpy(part) for part in (items, audience, tier, lines)))
        np.testing.assert_allclose(np.exp(found), other.exp().numpy(), atol=1e-6)
        total += np.exp(found)
    np.testing.assert_allclose(total, 1.0, atol=1e-12)


def test_without_a_generator_the_likeliest_line_is_said(said):
    items, audience, tier = pages(400, 3)
    found = said.choose(items, audience, tier, None)
    every = np.stack([said.log_prob(items, audience, tier, np.full_like(items, line)) for line in range(len(LINES))])
    shown = items != EMPTY
    assert (found.log_prob[shown] == every.max(0)[shown]).all()
    assert (found.log_prob == said.log_prob(items, audience, tier, found.lines)).all()


def test_no_tiers_are_no_offer(said):
    items, audience, _ = pages(50, 4)
    none = np.zeros(50, np.int64)
    found = said.choose(items, audience, None, np.random.default_rng(0))
    assert np.array_equal(found.lines, said.choose(items, audience, none, np.random.default_rng(0)).lines)
    assert np.array_equal(said.log_prob(items, audience, None, found.lines), found.log_prob)
    assert not any("20%" in LINES[line] for line in found.lines.ravel() if line != EMPTY)


def test_rows_tell_among_how_many_a_line_was_chosen(said):
    slot, new, nobody = np.array([[0]]), np.array([LABELS.index("new")]), np.array([LABELS.index("returning")])
    for audience, choices, whose in ((new, 2, "new"), (nobody, 3, "")):
        line = said.choose(slot, audience, np.array([0]), None).lines
        row = int(said.rows(slot, audience, np.array([0]), line)[0, 0])
        assert said.choices[row] == choices
        assert BANK.table.loc[row, ["audience", "item_id", "line"]].tolist() == [whose, "item-0", LINES[line[0, 0]]]
    assert said.choices[(BANK.table["item_id"] == "not sold any more").to_numpy()].tolist() == [0]


def test_a_bank_without_lines_says_templates_alone():
    empty = bank_of([written("item-0", "", 0.0, "FREE!!")])
    said = PageCopy(empty, "headline", Audiences(()), (0.0,), CATALOG, empty.texts("headline"))
    items = np.array([[0, 1, EMPTY]])
    found = said.choose(items, np.zeros(1, np.int64), np.zeros(1, np.int64), np.random.default_rng(0))
    assert [said.bank.texts("headline")[line] for line in found.lines[0, :2]] == ["Pot of item-0", "Have a look"]
    assert found.lines[0, 2] == EMPTY
    assert not found.log_prob.any()
    assert said.log_prob(items, np.zeros(1, np.int64), None, found.lines[:, ::-1])[0].tolist() == [
        -np.inf,
        0.0,
        -np.inf,
    ]
    assert said.start(2).clicks.shape == (2, 0)


def test_a_line_that_is_not_listed_is_refused():
    with pytest.raises(InputError, match="the bank holds a line that the bundle does not list; got 'Made to last'"):
        PageCopy(BANK, "headline", AUDIENCES, DISCOUNTS, CATALOG, [text for text in LINES if text != "Made to last"])


def test_a_life_by_hand(said):
    """A visit with clicks, one after three days with a purchase, one after thirty."""
    seen = said.start(1)
    assert seen.visits.tolist() == [NOBODY]

    def page(gap: float, number: int, items: list[int], clicked: list[int], bought: list[int]) -> str:
        nonlocal seen
        seen = said.arrived(seen, np.array([gap]), np.array([number]))
        label = LABELS[said.audiences.number(seen)[0]]
        seen = said.answered(seen, np.array([items]), np.array([clicked]), np.array([bought]))
        return label

    assert page(0.0, 0, [0, 1], [1, 0], [0, 0]) == "new"
    assert page(0.0, 1, [2, 1], [1, 1], [0, 0]) == "new"
    assert page(0.0, 2, [3, EMPTY], [1, 0], [0, 0]) == "new, likes kitchen"
    assert page(3.0, 0, [4, 1], [1, 1], [1, 0]) == "returning, likes kitchen"
    assert page(0.0, 1, [4, 1], [0, 0], [0, 0]) == "returning, bought before, likes garden"
    assert page(30.0, 0, [0, 2], [1, 0], [0, 0]) == "back after a while, likes garden"
    assert page(0.1, 1, [0, 2], [0, 0], [0, 0]) == "back after a while, likes kitchen"  # as often, and later
    assert page(1.0, 0, [0, 2], [0, 0], [0, 0]) == "returning, bought before, likes kitchen"
    assert (seen.visits.tolist(), seen.purchases.tolist(), seen.clicks.tolist()) == ([3], [1], [[3, 3]])


def test_a_first_page_in_the_middle_of_a_visit_is_of_the_first_visit(said):
    seen = said.arrived(said.start(2), np.array([0.0, 0.0]), np.array([4, 0]))
    assert seen.visits.tolist() == [0, 0]
    assert said.arrived(seen, np.array([40.0, 40.0]), np.array([5, 0])).visits.tolist() == [0, 1]
    assert said.arrived(seen, np.array([40.0, 40.0]), np.array([5, 0])).away.tolist() == [0.0, 40.0]


def test_labels_are_those_of_a_simulated_log(tmp_path):
    world = BazaarWorld(load_bazaar(None), torch.device("cpu"))
    write_logs(world, logging_strategy(world, "popularity"), tmp_path / "logs", 30, 60, seed=3)
    logs = read_logs(tmp_path / "logs")
    rows, items = logs.impressions, logs.items
    audiences = Audiences.fit(rows, items)
    said = PageCopy(bank_of([]), "headline", audiences, (0.0,), Catalog.from_items(items), ["Have a look"])
    rows = rows.assign(label=audiences.label(rows, items).codes, item=said.items.get_indexer(rows["item_id"]))
    met = set()
    for _, life in rows.groupby("shopper_id"):
        seen, last = said.start(1), None
        pages = life.sort_values(["timestamp", "position"]).groupby(["timestamp", "visit_id", "page"], sort=True)
        for (time, _, number), page in pages:
            gap = 0.0 if last is None else (time - last) / pd.Timedelta(days=1)
            seen = said.arrived(seen, np.array([gap]), np.array([number]))
            assert said.audiences.number(seen).tolist() == page["label"].unique().tolist()
            met.add(int(page["label"].iloc[0]))
            answers = (page[name].to_numpy()[None] for name in ("item", "clicked", "converted"))
            seen, last = said.answered(seen, *answers), time
    assert len(met) > 12
    stages = {code // (1 + len(audiences.liked)) for code in met}
    assert stages == {0, 1, 2, 3}
