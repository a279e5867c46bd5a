"""Filling the bank: all is written for, in batches of like prompts, and worth what shoppers make of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.agents.bank import SCORED, every_assignment, expected_gain, fill_bank
from hawker.agents.copy_reward import CopyReward
from hawker.agents.writer_data import Assignment, item_brief, tier_discounts
from hawker.policies.briefs import Brief
from hawker.policies.copy_bank import Candidate, ChoiceConfig, build_bank
from hawker.policies.guardrails import Guardrails
from hawker.policies.small_writer import small_model
from hawker.policies.writer import ROWS, Writer
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.shop.reward import RewardSpec
from hawker.simulators.store import load_shoppers

GUARDRAILS = Guardrails.load()
TITLES = ("Tea pot", "Wool hat", "A long and winding name of a lamp")
ITEMS = pd.DataFrame({"item_id": ["a", "b", "c"], "title": TITLES, "category": "home", "price": [3.0, 5.0, 8.0]})
SAID = ("Quiet and warm", "Good for a cold day", "Made to last", "FREE!!")


class Says:
    """A writer who says one of four lines for each draw, and knows what it was asked."""

    digest = "digest of a writer"

    def __init__(self) -> None:
        self.asked: list[tuple[list[Brief], int, float, int]] = []

    def write(self, briefs: Sequence[Brief], count: int, temperature: float, seed: int) -> list[list[str]]:
        self.asked.append((list(briefs), count, temperature, seed))
        return [[SAID[(seed + i + j) % 4] for j in range(count)] for i in range(len(briefs))]


class Worth:
    """Two models to whom a line is worth its length, and another share of it; to new shoppers twice that."""

    labels = ("new", "returning")

    def __init__(self) -> None:
        self.asked: list[int] = []

    def by_member(self, item_ids, audiences, discounts, lines) -> dict[str, np.ndarray]:
        self.asked.append(len(lines))
        worth = np.array([len(line) * (1 + (who == "new")) for line, who in zip(lines, audiences, strict=True)]) / 1e3
        return {"click": 0 * np.stack([worth, worth]), "total": np.stack([worth, 1.5 * worth])}


def fill(assignments: Sequence[Assignment], count: int = 2, seed: int = 0, **told):
    return fill_bank(Says(), GUARDRAILS, assignments, Worth(), count=count, temperature=0.7, seed=seed, **told)


def test_every_item_for_every_audience_at_every_discount():
    found = every_assignment(ITEMS, "headline", ("", "new"), (0.0, 0.2, 0.0), ("Ours",))
    assert len(found) == len(set(found)) == 3 * 2 * 2
    assert [each.item_id for each in found] == [item for item in "abc" for _ in range(4)]
    assert [(each.brief.audience, each.brief.discount) for each in found[:4]] == [
        (audience, discount) for audience in ("", "new") for discount in (0.0, 0.2)
    ]
    assert found[5].brief == item_brief(ITEMS.iloc[1], "headline", "", 0.2, ("Ours",))


def test_the_bank_is_that_of_all_lines_at_once():
    wanted = every_assignment(ITEMS, "headline", ("", "new"), (0.0, 0.2))
    held = fill([*wanted, wanted[0]], choice=ChoiceConfig(0.1, 0.3))
    assert (held.filled.written, held.writer, held.choice) == (24, "digest of a writer", ChoiceConfig(0.1, 0.3))
    assert held.filled.by_rule["free"] == held.filled.rejected > 0
    assert set(held.table["line"]) < set(SAID)
    instead = {(each.item_id, each.brief.audience, each.brief.discount): each.brief for each in wanted}
    expected = [
        (len(row.line) - len(GUARDRAILS.fallback(instead[row.item_id, row.audience, row.discount])))
        * (2e-3 if row.audience == "new" else 1e-3)
        for row in held.table.itertuples()
    ]
    assert held.table["effect"].to_numpy() == pytest.approx(1.25 * np.array(expected))
    assert held.table["uncertainty"].to_numpy() == pytest.approx(0.5 * np.abs(expected) / 2**0.5)


def test_writing_is_batched_by_item_with_a_seed_a_batch():
    items = pd.concat([ITEMS.assign(item_id=ITEMS["item_id"] + str(i)) for i in range(30)])
    wanted, writer, heard = every_assignment(items, "headline", ("", "new"), (0.0, 0.2)), Says(), []
    reward = Worth()
    fill_bank(
        writer, GUARDRAILS, wanted, reward, count=3, temperature=0.7, seed=4, progress=lambda *told: heard.append(told)
    )
    sizes = [len(briefs) for briefs, *_ in writer.asked]
    assert sum(sizes) == len(wanted) == 360
    assert max(sizes) * 3 <= ROWS
    assert {(count, temperature) for _, count, temperature, _ in writer.asked} == {(3, 0.7)}
    assert len({seed for *_, seed in writer.asked}) == len(writer.asked)
    lengths = [len(brief.title) for briefs, *_ in writer.asked for brief in briefs]
    assert lengths == sorted(lengths)
    changes = [len({brief.title for brief in briefs}) for briefs, *_ in writer.asked]
    assert max(changes) <= 2
    assert max(reward.asked) <= SCORED < sum(reward.asked)
    for what in ("written", "scored"):
        done = [n for name, n, total in heard if name == what]
        assert done == sorted(set(done))
        assert {total for name, _, total in heard if name == what} == {done[-1]}


def test_the_seed_decides():
    wanted = every_assignment(ITEMS, "headline", ("",), (0.0,))
    one, same, *others = (fill(wanted, seed=seed) for seed in (1, 1, 2, 3, 4))
    pd.testing.assert_frame_equal(one.table, same.table)
    assert not all(one.table.equals(other.table) for other in others)


def test_nothing_is_written_for_an_audience_that_nobody_belongs_to():
    writer, wanted = Says(), every_assignment(ITEMS, "headline", ("", "returnin"), (0.0,))
    with pytest.raises(
        InputError, match=r"no page of the log has this audience; got 'returnin'; did you mean 'returning'"
    ):
        fill_bank(writer, GUARDRAILS, wanted, Worth(), count=1, temperature=1.0, seed=0)
    assert not writer.asked


def test_nothing_to_write_for_is_a_bank_of_templates():
    assert len(fill([])) == 0
    assert expected_gain(fill([])) is None


def test_what_a_line_is_expected_to_gain():
    """By hand: two lines of one key, one of another; keys count alike."""
    said = [("a", "", "Quiet and warm"), ("a", "", "Made to last"), ("b", "new", "Good for a cold day")]
    candidates = [Candidate(item, Brief("headline", audience=who), line) for item, who, line in said]
    held = build_bank(
        candidates, lambda *asked: Worth().by_member(*asked)["total"], GUARDRAILS, "w", ChoiceConfig(1, 1)
    )
    template, mean = len("Have a look"), 1.25e-3
    effects = [mean * (len(line) - template) * (1 + (who == "new")) for _, who, line in said]
    assert expected_gain(held) == pytest.approx(((effects[0] + effects[1]) / 2 + effects[2]) / 2)


def test_a_writer_and_learned_shoppers(remembering: Path, tmp_path: Path):
    shoppers = load_shoppers(remembering / "run" / "shoppers", torch.device("cpu"))
    impressions, items = shoppers.read_part("train"), read_logs(shoppers.logs).items
    tiers = tuple(tier_discounts(impressions, items).values())
    reward = CopyReward(shoppers, impressions, items, RewardSpec(conversion=2.0), discounts=tiers, contexts=4)
    assert shoppers.lines is not None
    model = small_model(tmp_path / "model", shoppers.lines.texts)
    writer = Writer.load(str(model), torch.device("cpu"))
    wanted = every_assignment(items.head(3), "headline", ("", reward.labels[0]), tiers)
    held = fill_bank(writer, GUARDRAILS, wanted, reward, count=4, temperature=0.3, seed=0)
    assert held.filled.written == 4 * len(wanted)
    assert held.writer == writer.digest
    table = held.table
    assert len(table) > 0
    asked = [list(table[name]) for name in ("item_id", "audience", "discount")]
    briefs = {(each.item_id, each.brief.discount): each.brief for each in wanted}
    instead = [GUARDRAILS.fallback(briefs[item, off]) for item, _, off in zip(*asked, strict=True)]
    gain = reward.by_member(*asked, list(table["line"]))["total"] - reward.by_member(*asked, instead)["total"]
    assert table["effect"].to_numpy() == pytest.approx(gain.mean(0), abs=1e-6)
    assert table["uncertainty"].to_numpy() == pytest.approx(gain.std(0, ddof=1), abs=1e-6)
