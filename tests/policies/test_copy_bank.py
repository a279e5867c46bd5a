import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hawker.policies.briefs import Brief
from hawker.policies.copy_bank import Candidate, ChoiceConfig, CopyBank, build_bank
from hawker.policies.guardrails import Guardrails
from hawker.shop.artefacts import sha256, write_json
from hawker.shop.errors import InputError

GUARDRAILS = Guardrails.load()
WORTH = {"A pot for slow mornings": 0.05, "Brew something good": 0.04, "Tea time": 0.01, "Now 20% off": 0.09}


def scorer(item_ids, audiences, discounts, lines):
    """Three models; the third doubts "Tea time"; all give 0.02 to whatever is not in the table."""
    worth = np.array([WORTH.get(line, 0.02) for line in lines])
    doubts = np.array([0.03 if line == "Tea time" else 0.0 for line in lines])
    return np.stack([worth, worth, worth - doubts])


def brief(audience: str = "", surface: str = "promotion", discount: float = 0.0, title: str = "Rustic teapot") -> Brief:
    return Brief(surface, title, price=35.0, discount=discount, audience=audience)


def bank(choice: ChoiceConfig | None = None) -> CopyBank:
    candidates = [Candidate("a", brief(), line) for line in WORTH]
    candidates += [
        Candidate("a", brief(), '"Tea time"'),  # once more, in quotes
        Candidate("a", brief(discount=0.2), "Now 20% off"),
        Candidate("a", brief("loyal shoppers"), "Brew something good"),
        Candidate("b", brief(title="Wool blanket"), "FREE!!"),
    ]
    return build_bank(candidates, scorer, GUARDRAILS, "digest-of-a-writer", choice)


def numbers_of(held: CopyBank, audience: str, discount: float) -> pd.DataFrame:
    return held.table[(held.table["audience"] == audience) & (held.table["discount"] == discount)]


def test_lines_are_filtered_scored_and_counted():
    held = bank()
    assert held.filled.by_rule == {"discount": 1, "free": 1, "shouting": 1}
    assert (held.filled.written, held.filled.kept, held.filled.repeated, held.filled.rejected) == (8, 5, 1, 2)
    plain = numbers_of(held, "", 0.0)
    assert list(plain["line"]) == ["A pot for slow mornings", "Brew something good", "Tea time"]
    assert plain["effect"].to_numpy() == pytest.approx([0.03, 0.02, -0.02])  # against the template's 0.02
    assert plain["uncertainty"].to_numpy() == pytest.approx([0, 0, np.std([0, 0, 0.03], ddof=1)])
    assert held.writer == "digest-of-a-writer"
    assert held.guardrails == (GUARDRAILS.digest, GUARDRAILS.version)


def test_propensities_are_the_formula():
    held = bank(ChoiceConfig(temperature=0.01, floor=0.3, caution=2.0))
    bound = np.array([0.03, 0.02, -0.02 - 2 * np.std([0, 0, 0.03], ddof=1)])
    share = np.exp(bound / 0.01) / np.exp(bound / 0.01).sum()
    rows = numbers_of(held, "", 0.0).index
    assert held.propensity[rows] == pytest.approx(0.1 + 0.7 * share)
    assert held.propensity[numbers_of(held, "", 0.2).index] == pytest.approx([1.0])


def test_draws_are_as_frequent_as_their_propensities():
    held, n = bank(ChoiceConfig(temperature=0.02, floor=0.2)), 40_000
    chosen = held.choose(["a"] * n, [""] * n, [0.0] * n, "promotion", np.random.default_rng(3))
    rows = numbers_of(held, "", 0.0).index
    share = np.array([(chosen.number == row).mean() for row in rows])
    assert share.sum() == 1
    assert np.abs(share - held.propensity[rows]).max() < 4 * np.sqrt(0.25 / n)
    assert chosen.propensity == pytest.approx(held.propensity[chosen.number])


def test_slots_of_many_pages_get_the_lines_of_their_own_key():
    held = bank()
    items, audiences = ["a", "a", "a", "b", "zzz", "a"], ["", "loyal shoppers", "nobody knows", "", "", ""]
    chosen = held.choose(items, audiences, [0, 0, 0, 0, 0, np.float32(0.2)], "promotion", np.random.default_rng(0))
    plain = set(numbers_of(held, "", 0.0)["line"])
    assert chosen.lines[0] in plain
    assert chosen.lines[1] == "Brew something good"
    assert chosen.lines[2] in plain  # lines for anybody
    assert (chosen.lines[3], chosen.number[3], chosen.propensity[3]) == ("Have a look: Wool blanket", -1, 1.0)
    assert (chosen.lines[4], chosen.number[4], chosen.propensity[4]) == ("Have a look at this one", -1, 1.0)
    assert (chosen.lines[5], chosen.propensity[5]) == ("Now 20% off", pytest.approx(1.0))


def test_line_of_an_offer_is_never_shown_without_it():
    n = 2_000
    chosen = bank().choose(["a"] * n, [""] * n, [0.0] * n, "promotion", np.random.default_rng(0))
    assert not any("20%" in line for line in chosen.lines)
    other = bank().choose(["a"], [""], [0.35], "promotion", np.random.default_rng(0))
    assert other.number.tolist() == [-1]


def test_probabilities_of_given_lines():
    held = bank()
    lines = ["Tea time", "A line of nobody", "Brew something good", "Have a look: Wool blanket", "Tea time"]
    slots = (["a", "a", "a", "b", "b"], ["", "", "loyal shoppers", "", ""], [0.0] * 5, "promotion")
    tea = numbers_of(held, "", 0.0)["line"].eq("Tea time").to_numpy()
    expected = [held.propensity[numbers_of(held, "", 0.0).index][tea][0], 0, 1, 1, 0]
    assert held.probabilities(*slots, lines) == pytest.approx(expected)


worths = st.lists(st.floats(-1, 1), min_size=1, max_size=12)


@settings(max_examples=20)
@given(st.lists(worths, min_size=1, max_size=4), st.floats(1e-6, 10), st.floats(0, 1), st.integers(0, 2**32))
def test_probabilities_of_each_key_sum_to_one(groups: list[list[float]], temperature: float, floor: float, seed: int):
    words = [f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(12)]
    said = {f"pot {words[i]} {words[j]}": x for i, group in enumerate(groups) for j, x in enumerate(group)}
    candidates = [
        Candidate(str(i), brief(), f"pot {words[i]} {words[j]}")
        for i, group in enumerate(groups)
        for j in range(len(group))
    ]
    held = build_bank(
        candidates,
        lambda items, who, off, lines: np.array([[said.get(line, 0.0) for line in lines]]),
        GUARDRAILS,
        "w",
        ChoiceConfig(temperature, floor),
    )
    sums = held.table.assign(p=held.propensity).groupby("item_id")["p"].sum()
    assert sums.to_numpy() == pytest.approx(1.0)
    assert (held.propensity >= floor / 12 - 1e-12).all()
    slots = [str(i) for i in range(len(groups))] * 20
    chosen = held.choose(slots, [""] * len(slots), [0.0] * len(slots), "promotion", np.random.default_rng(seed))
    assert (held.table["item_id"].to_numpy()[chosen.number] == slots).all()
    assert (chosen.propensity > 0).all()


def test_bank_comes_back_as_it_was(tmp_path: Path):
    held = bank()
    held.save(tmp_path / "bank")
    again = CopyBank.load(tmp_path / "bank", GUARDRAILS)
    pd.testing.assert_frame_equal(held.table, again.table, check_dtype=False)
    assert (again.choice, again.writer, again.guardrails, again.filled) == (
        held.choice,
        held.writer,
        held.guardrails,
        held.filled,
    )
    slots = (["a", "b", "c"] * 50, [""] * 150, [0.0] * 150, "promotion")
    one, two = (which.choose(*slots, np.random.default_rng(5)) for which in (held, again))
    assert (one.lines == two.lines).all()
    assert (one.propensity == two.propensity).all()
    held.save(tmp_path / "again")
    assert sha256(tmp_path / "bank" / "checksums.json") == sha256(tmp_path / "again" / "checksums.json")


def test_bank_without_a_line_shows_templates(tmp_path: Path):
    empty = build_bank([Candidate("a", brief(), "FREE!!")], scorer, GUARDRAILS, "w")
    empty.save(tmp_path / "bank")
    for held in (empty, CopyBank.load(tmp_path / "bank")):
        chosen = held.choose(["a", "b"], ["", ""], [0, 0], "promotion", np.random.default_rng(0))
        assert list(chosen.lines) == ["Have a look: Rustic teapot", "Have a look at this one"]
        assert chosen.propensity.tolist() == [1, 1]
        assert held.probabilities(["a"], [""], [0], "promotion", ["Have a look: Rustic teapot"]).tolist() == [1.0]
    assert len(build_bank([], scorer, GUARDRAILS, "w")) == 0


def test_lines_without_a_finite_score_are_left_out():
    def broken(items, who, off, lines):
        return np.array([[np.nan if line == "Tea time" else 0.1 for line in lines]])

    held = build_bank([Candidate("a", brief(), line) for line in WORTH], broken, GUARDRAILS, "w")
    assert "Tea time" not in set(held.table["line"])
    assert held.filled.unscored == 1
    assert np.isfinite(held.propensity).all()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: bank().choose(["a"], ["", ""], [0.0], "promotion", np.random.default_rng(0)), "1 items, 2 audiences"),
        (lambda: bank().choose(["a"], [""], [0.0], "banner", np.random.default_rng(0)), "unknown surface"),
        (
            lambda: build_bank([Candidate("a", brief(), "Tea time")], lambda *_: np.zeros(2), GUARDRAILS, "w"),
            "expected shape (models, 2)",
        ),
    ],
)
def test_bad_input_is_named(made, message: str):
    with pytest.raises(InputError) as caught:
        made()
    assert message in str(caught.value)


def test_bank_that_passed_other_rules_is_refused(tmp_path: Path):
    bank().save(tmp_path / "bank")
    other = Guardrails(GUARDRAILS.rules, "0" * 64)
    with pytest.raises(InputError, match=r"passed other guardrails.*build the bank anew"):
        CopyBank.load(tmp_path / "bank", other)


def test_damaged_bank_is_refused(tmp_path: Path):
    bank().save(tmp_path / "bank")
    manifest = tmp_path / "bank" / "manifest.json"
    kept = manifest.read_text()
    write_json(manifest, {"format": 1})
    with pytest.raises(InputError, match="changed after it was written"):
        CopyBank.load(tmp_path / "bank")
    manifest.write_text(kept)
    CopyBank.load(tmp_path / "bank")
    shutil.rmtree(tmp_path / "bank")
    with pytest.raises(InputError, match="no copy bank here"):
        CopyBank.load(tmp_path / "bank")
