from __future__ import annotations

import numpy as np
import pytest
import torch

from hawker.benchmarks.fidelity_value import (
    Values,
    _lines,
    all_arms,
    evaluate,
    value_figures,
    visit_counts,
    visit_figures,
)
from hawker.shop.decision import EMPTY
from hawker.shop.errors import InputError
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.shopper import Ensemble
from hawker.simulators.store import FittedShoppers


def test_arms_are_ten_beside_the_logging_one(bazaar: BazaarWorld) -> None:
    arms = all_arms(bazaar)
    assert arms[0].name == "popularity"
    assert len({arm.name for arm in arms}) == 11
    context = bazaar.arrive(300, torch.Generator().manual_seed(1)).context
    for arm in arms:
        decision = arm.propose(context, torch.Generator().manual_seed(2))
        assert decision.copy is not None
        shown = decision.copy[decision.copy != EMPTY]
        assert bazaar.logged_lines[shown].all()
        if arm.name == "spam everywhere":
            assert bazaar.spam[shown].all()
            assert len(shown) == (decision.slate != EMPTY).sum()
        if arm.name == "always the largest offer":
            assert decision.offer is not None
            assert (decision.offer == len(bazaar.parameters.discounts) - 1).all()


def test_strategies_of_a_world_without_their_lines_are_refused(bazaar: BazaarWorld) -> None:
    with pytest.raises(InputError, match="no lines of the cue 'rhymes'"):
        _lines(bazaar, "rhymes")


def test_values_by_hand() -> None:
    gold = Values(("a", "b", "c", "d"), np.array([10.0, 12.0, 9.0, 10.2]), np.array([0.1, 0.1, 0.1, 0.1]))
    judged = Values(gold.names, np.array([20.0, 22.0, 21.0, 19.0]), gold.error)
    assert gold.difference == pytest.approx([0.2, -0.1, 0.02])
    assert gold.difference_error[0] == pytest.approx(1.2 * np.hypot(0.1 / 12, 0.01))
    found = value_figures(judged, gold)
    # Differences 0.1, 0.05 and -0.05 against 0.2, -0.1 and 0.02: errors 0.1, 0.15 and 0.07 of a range of 0.3.
    assert found["median_error"] == pytest.approx(0.1 / 0.3)
    assert found["sign_errors"] == 1.0  # the last differs by less than 5% in gold
    assert found["spearman"] == pytest.approx(0.5)


def test_learned_and_gold_worlds_are_evaluated_alike(
    bazaar: BazaarWorld, untrained: FittedShoppers, members: Ensemble
) -> None:
    told: list[str] = []
    learned = LearnedWorld(untrained.builder, members, untrained.arrivals["train"], untrained.size)
    arms = all_arms(bazaar)[:2]
    gold, gold_totals = evaluate(bazaar, arms, 40, 1, told.append)
    judged, totals = evaluate(learned, arms, 40, 1, told.append)
    assert gold.names == judged.names == ("popularity", "random items")
    assert len(told) == 4
    found = visit_figures(totals, gold_totals, 1)
    assert all(0 <= (f["value"] or 0.0) <= 1 for f in found.values())
    same = visit_figures(gold_totals, gold_totals, 1)
    assert all(f["value"] == 0.0 for f in same.values())
    assert sum(visit_counts(totals)["pages"]) == pytest.approx(1.0)
