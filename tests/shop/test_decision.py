from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from hawker.shop.decision import EMPTY, Decision, Outcome


def test_an_empty_slot_is_no_catalog_index():
    assert EMPTY < 0


def test_a_world_without_purchases_says_so():
    outcome = Outcome(clicked=np.ones((2, 3)), click_probability=np.ones((2, 3)), gone=np.ones(2, bool))
    assert outcome.converted is None
    assert outcome.revenue is None


def test_a_decision_stands():
    decision = Decision(slate=np.zeros((2, 3), int), log_prob=np.zeros(2))
    with pytest.raises(FrozenInstanceError):
        decision.log_prob = np.ones(2)
