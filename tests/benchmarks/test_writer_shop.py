"""What a writer is judged with: clicks drawn instead of expected, and what lines are worth, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from hawker.agents.writer_data import Assignment
from hawker.benchmarks import writer_shop
from hawker.benchmarks.copy_judgement import Effect
from hawker.benchmarks.writer_shop import Listened, Shop, asked
from hawker.policies.briefs import Brief
from hawker.shop.reward import RewardSpec

GIVEN = [
    Assignment("a", Brief("headline", discount=0.1, audience="new")),
    Assignment("b", Brief("headline", audience="old")),
]
LINES = [["one", "two"], ["three", "four"]]


def test_clicks_drawn_instead_of_expected():
    class Answers:
        spec = RewardSpec(click=2.0)

        def __call__(self, *_: object) -> dict[str, np.ndarray]:
            return {"click": np.full(4000, 0.3), "total": np.full(4000, 1.0)}

    expected, drawn = Listened(Answers()), Listened(Answers(), 3)
    assert (expected([], [], [], [])["total"] == 1.0).all()
    total = drawn([], [], [], [])["total"]
    assert set(np.round(total, 6)) == {0.4, 2.4}
    assert total.mean() == pytest.approx(1.0, abs=0.06)
    assert len(drawn.batches) == 1


class Shoppers:
    """Answer by the length of a line."""

    spec = RewardSpec(click=2.0, conversion=5.0, return_visit=3.0)
    last = 0.5

    def __call__(self, items: list[str], who: list[str], off: list[float], lines: list[str]) -> dict[str, np.ndarray]:
        assert (items, who, off) == (["a", "a", "b", "b"], ["new", "new", "old", "old"], [0.1, 0.1, 0.0, 0.0])
        length = np.array([len(line) for line in lines], float)
        return {"total": length, "click": length / 10}


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    def true_effect(
        world: str, texts: list[str], items: list[str], who: list[str], moments: str, *, tiers: list[int], contexts: int
    ) -> Effect:
        assert (world, moments, tiers) == ("gold", "then", [1, 1, 0, 0])
        click = np.array([len(text) for text in texts]) / 100
        return Effect(click, click / 10, -click, np.full(len(texts), 0.4))

    monkeypatch.setattr(writer_shop, "true_effect", true_effect)
    return Shop("gold", "then", (0.0, 0.12), SimpleNamespace(), Shoppers())


def test_every_line_is_asked_for_with_its_assignment():
    lines = [["one", "two"], ["three"]]
    assert asked(GIVEN, lines) == (["a", "a", "b"], ["new", "new", "old"], [0.1, 0.1, 0.0], ["one", "two", "three"])


def test_gold_and_the_curve_by_hand(shop: Shop):
    assert shop.gold(GIVEN, LINES) == pytest.approx(np.array([[0.03, 0.03], [0.05, 0.04]]))
    batch = (asked(GIVEN, LINES), np.array([0.1, 0.2, 0.3, 0.4]))
    assert shop.curve([batch]) == [pytest.approx((0.25, 0.0375))]


def test_what_lines_are_worth_by_hand(shop: Shop):
    click = (3 + 3 + 5 + 4) / 4 / 100
    worth = {"proxy": 3.75, "proxy_click": 0.375, "gold": 2 * click + 5 * click / 10 + 3 * 0.5 * 0.4}
    assert shop.judged(GIVEN, LINES) == pytest.approx(worth | {"gold_click": click})
