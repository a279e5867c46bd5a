"""Shoppers who live in classes of taste; test_frozen.py holds what classes do to their answers."""

import pytest
import torch

from hawker.simulators.frozen_tastes import FrozenTastes
from hawker.simulators.taste_classes import CLASSES, TasteClasses


@pytest.fixture(scope="module")
def tastes(regulars) -> TasteClasses:
    found = regulars[1].ensembles["train"].tastes
    assert found is not None
    return found


def test_new_shoppers_are_as_often_in_a_class_as_their_features_say(tastes):
    n, width = 60_000, len(tastes.shopper_centre)
    scaled = torch.randn(width, generator=torch.Generator().manual_seed(0)).expand(n, -1)
    drawn = FrozenTastes(tastes).drawn(scaled, torch.rand(n, generator=torch.Generator().manual_seed(1)))
    share = torch.bincount(drawn, minlength=CLASSES) / n
    torch.testing.assert_close(share, tastes.beliefs(tastes.begin(scaled[:1]))[0], atol=0.01, rtol=0.0)


def test_classes_move_between_visits_alone(tastes):
    n, frozen = 60_000, FrozenTastes(tastes)
    classes = torch.full((n,), 1)
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(2))
    assert torch.equal(frozen.moved(classes, torch.zeros(n, dtype=torch.bool), uniform), classes)
    moved = frozen.moved(classes, torch.ones(n, dtype=torch.bool), uniform)
    before = torch.nn.functional.one_hot(classes[:1], CLASSES).float().clamp(min=1e-9).log()
    share = torch.bincount(moved, minlength=CLASSES) / n
    torch.testing.assert_close(share, tastes.moved(before)[0].exp(), atol=0.01, rtol=0.0)


def test_draws_at_the_ends_stay_within_the_classes(tastes):
    frozen, width = FrozenTastes(tastes), len(tastes.shopper_centre)
    ends = torch.tensor([0.0, 1.0 - 2**-24])
    assert frozen.drawn(torch.zeros(2, width), ends).tolist() == [0, CLASSES - 1]
    assert frozen.moved(torch.tensor([3, 3]), torch.ones(2, dtype=torch.bool), ends).tolist() == [0, 3]
