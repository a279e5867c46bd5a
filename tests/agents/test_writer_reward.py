"""The writer's reward, part by part, with shoppers and judges that the tests play."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from hawker.agents.writer_config import GrpoConfig
from hawker.agents.writer_data import Assignment
from hawker.agents.writer_reward import WriterReward, repetition
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.shop.errors import InputError

ASSIGNMENTS = [
    Assignment("pot", Brief("headline", title="Tea pot", audience="bargain hunter")),
    Assignment("hat", Brief("headline", title="Wool hat", discount=0.1)),
]
PLAIN, GOOD, ODD = "A pot for slow mornings", "Warm mornings begin with tea", "Zxq pot vrt morning qqn"
END = 0


class Base:
    """Plays the untouched model: what reads oddly is 2 nats a token less likely."""

    tokenizer = type("Tokenizer", (), {"chat_template": None})

    def log_likelihood(self, briefs: None, lines: Sequence[str]) -> tuple[Any, Any]:
        nats = [np.nan if not line else -3.0 - 2.0 * line.startswith("Zxq") for line in lines]
        return np.array(nats), np.array([len(line) for line in lines])


def shoppers(items: Sequence[str], audiences: Sequence[str], discounts: Sequence[float], lines: Sequence[str]) -> Any:
    """Click most where a line is warm; they like hats."""
    assert all(isinstance(line, str) for line in lines)
    click = np.array(
        [0.1 + 0.4 * (item == "hat") + 0.02 * ("Warm" in line) for item, line in zip(items, lines, strict=True)]
    )
    return {"click": click, "conversion": 0.1 * click, "total": 1.1 * click}


def shoppers_alike(items: Sequence[str], audiences: Any, discounts: Any, lines: Sequence[str]) -> Any:
    """Like every line."""
    return {"total": np.full(len(lines), 0.2)}


def made(answers: Any = shoppers, preferences: Any = None, **options: Any) -> WriterReward:
    config = GrpoConfig(batch=4, rows=2, group=2, **options)
    reward = WriterReward(ASSIGNMENTS, answers, Guardrails.load(), Base(), [END], config, preferences)  # type: ignore[arg-type]
    reward.calibrate([0, 1], [[PLAIN, GOOD], ["A hat for cold days", "Warm wool, fair price"]])
    return reward


def ask(
    reward: WriterReward, lines: list[str], row: list[int], ends: list[int] | None = None
) -> tuple[Any, dict[str, Any]]:
    logged: dict[str, float] = {}
    ids = [[5, end] for end in ends or [END] * len(lines)]
    said = [[{"role": "assistant", "content": line}] for line in lines]
    return reward(
        prompts=[""] * len(lines),
        completions=said,
        completion_ids=ids,
        row=row,
        log_metric=logged.__setitem__,
        trainer_state=None,
    ), logged


def test_shoppers_count_in_standard_deviations_of_the_first_lines():
    """Of the first lines the better of two is 0.022 above the other: 0.011 about their mean is one deviation."""
    reward = made(diversity=0.0)
    rewards, logged = ask(reward, [PLAIN, GOOD, "A hat", "Warm hat"], [0, 0, 1, 1])
    assert rewards == pytest.approx([-1, 1, -1, 1])
    assert logged["shoppers/click"] == pytest.approx(0.31)
    assert logged["shoppers/conversion"] == pytest.approx(0.031)
    assert logged["line/nats"] == -3.0
    assert logged["penalty/refused"] == logged["penalty/fluency"] == 0.0
    assert logged["seconds/reward"] > 0


def test_what_reads_oddly_costs():
    level = made().calibrate([0], [[PLAIN, GOOD]])
    assert level.fluency == -3.0
    plain, odd = (ask(made(fluency=weight, slack=0.5), [PLAIN, ODD], [0, 0])[0] for weight in (0.0, 1.0))
    assert plain[1] - odd[1] == pytest.approx(1.5)
    assert odd[0] == plain[0]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("", "empty"),
        ("Tea pot: bargain hunter audience", "echo"),
        ("Warm tea pot, 50% off", "discount"),
        ("Warm tea pot " * 9, "length"),
    ],
)
def test_a_refused_line_gains_nothing_and_costs(line: str, rule: str):
    rewards, logged = ask(made(diversity=0.0, fluency=0.0, hit=3.0), [PLAIN, line], [0, 0])
    assert rewards[1] <= -3.0
    assert logged[f"refused/{rule}"] == 0.5
    assert logged["penalty/refused"] == 1.5


def test_a_line_that_does_not_end_is_refused():
    rewards, logged = ask(made(diversity=0.0), [PLAIN, GOOD], [0, 0], ends=[END, 7])
    assert rewards == pytest.approx([0.0, -2.0])
    assert logged["refused/unfinished"] == 0.5


def test_one_line_for_everything_costs():
    same = ["Warm days begin here"] * 4
    rewards, logged = ask(made(diversity=4.0, hit=0.0), same, [0, 0, 1, 1])
    assert logged["line/repeated"] == 1.0
    assert rewards == pytest.approx([-4.0] * 4, abs=0.5)


def test_a_phrase_costs_the_more_the_wider_it_has_spread():
    """ "warm days" stands in two of the other three lines, "cold days" in none: 2/3 of the weight against nothing."""
    rewards, logged = ask(
        made(shoppers_alike, diversity=3.0, fluency=0.0, hit=0.0),
        ["warm days", "warm days", "cold days", "warm days"],
        [0, 0, 0, 0],
    )
    assert rewards == pytest.approx([-2.0, -2.0, 0.0, -2.0])
    assert logged["penalty/diversity"] == pytest.approx(1.5)
    assert logged["line/repeated"] == pytest.approx(0.5)


def test_a_line_is_judged_once_for_a_brief():
    asked: list[Any] = []

    def listening(items: Sequence[str], audiences: Any, discounts: Any, lines: Sequence[str]) -> Any:
        asked.append(list(zip(items, lines, strict=True)))
        return shoppers(items, audiences, discounts, lines)

    once = made(listening, diversity=0.0)
    rewards, logged = ask(once, [PLAIN, GOOD, PLAIN, PLAIN], [0, 0, 0, 1])
    assert asked[-1] == [("pot", PLAIN), ("pot", GOOD), ("hat", PLAIN)]
    assert rewards[0] == rewards[2]
    assert rewards[1] - rewards[0] == pytest.approx(2.0)
    assert logged["shoppers/click"] == pytest.approx((0.1 + 0.12 + 0.1 + 0.5) / 4)  # of lines, not of what was asked


def test_repetition_by_hand():
    briefs = [ASSIGNMENTS[0].brief] * 3
    lines = ["a warm pot", "A warm, dry day", "tea pot"]
    # "a warm" stands in one of the other two; "warm pot", "warm dry" and "dry day" in none; the title does not count.
    assert repetition(lines, briefs) == pytest.approx([0.25, 0.5 / 3, 0.0])
    assert repetition(["warm", "warm"], briefs[:2]) == pytest.approx([1.0, 1.0])
    assert repetition(["warm"], briefs[:1]) == pytest.approx([0.0])


class Taste:
    """Plays a model of preferences: short lines."""

    def score(self, prompts: Sequence[Any], lines: Sequence[str]) -> Any:
        assert len(prompts) == len(lines)
        return np.array([-float(len(line)) for line in lines])


def test_preference_stands_beside_the_shoppers():
    without, (rewards, logged) = (
        ask(made(), [PLAIN, GOOD], [0, 0])[0],
        ask(made(preferences=Taste()), [PLAIN, GOOD], [0, 0]),
    )
    assert rewards[0] - rewards[1] > without[0] - without[1]
    assert logged["preference"] == pytest.approx(-(len(PLAIN) + len(GOOD)) / 2)


def test_an_answer_that_is_not_finite_is_left_out():
    def some(items: Any, audiences: Any, discounts: Any, lines: Sequence[str]) -> Any:
        total = np.array([np.nan if "tea" in line else 0.1 + 0.01 * len(line) for line in lines])
        return {"total": total}

    reward = made()
    reward._answers = some
    rewards, logged = ask(reward, [PLAIN, GOOD, "A hat"], [0, 0, 1])
    assert rewards[1] is None
    assert rewards[0] is not None
    assert logged["reward/unscored"] == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="no answer of the shoppers is finite"):
        ask(reward, [GOOD, GOOD], [0, 0])


def test_calibration_needs_finite_answers():
    with pytest.raises(InputError, match="the shoppers' answers are not finite"):
        made(answers=lambda *asked: {"total": np.full(len(asked[3]), np.inf)})


def test_shoppers_who_hardly_tell_lines_apart_are_not_blown_up():
    level = made(answers=lambda *asked: {"total": np.full(len(asked[3]), 0.3)}).calibrate([0], [[PLAIN, GOOD]])
    assert level.spread == 1.0
