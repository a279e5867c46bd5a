"""Decided pages as rows, row by row."""

import dataclasses

import torch

from hawker.shop.decision import EMPTY, Decision
from hawker.simulators.appeal import Architecture, Recorded
from hawker.simulators.pages import affinity_of, shown_rows
from hawker.simulators.shopper import ShopperModel
from hawker.simulators.small import small_world


def test_affinity_goes_with_its_item():
    context = small_world().arrive(3, torch.Generator().manual_seed(0)).context
    given = torch.arange(context.candidates.numel(), dtype=torch.float32).reshape(context.candidates.shape)
    context = dataclasses.replace(context, affinity=given)
    slate = context.candidates[:, [2, 0]].clone()
    slate[1, 0] = EMPTY
    expected = given[:, [2, 0]].clone()
    expected[1, 0] = 0.0
    torch.testing.assert_close(affinity_of(context, slate), expected)


def test_every_part_of_a_decision_that_the_model_knows():
    world = small_world()
    context = world.arrive(3, torch.Generator().manual_seed(0)).context
    slate = context.candidates[:, :2].clone()
    slate[2, 1] = EMPTY
    line = torch.tensor([[0, -1], [1, 0], [-1, -1]])
    decision = Decision(slate, torch.zeros(3), ad=torch.tensor([1, EMPTY, 0]), offer=torch.tensor([0, 1, 9]), copy=line)
    shape = (world.builder, world.size, Architecture(2, 1), 0.1, torch.Generator().manual_seed(0))
    rows = shown_rows(ShopperModel(*shape, Recorded(offers=3, ads=True)), context, decision)
    assert rows.item.tolist() == slate.flatten().tolist()
    assert rows.page.tolist() == [0, 0, 1, 1, 2, 2]
    assert rows.position.tolist() == [0, 1] * 3
    assert rows.offer.tolist() == [0, 0, 1, 1, 2, 2], "a tier above those known counts as the largest"
    assert rows.ad.tolist() == [0, 1, 0, 0, 1, 0]
    assert rows.line is None, "this model knows no lines"
    plain = shown_rows(ShopperModel(*shape), context, decision)
    assert (plain.offer, plain.ad, plain.line) == (None, None, None)
    silent = shown_rows(ShopperModel(*shape, Recorded(offers=3, ads=True)), context, Decision(slate, torch.zeros(3)))
    assert (int(silent.offer.sum()), float(silent.ad.sum())) == (0, 0.0)
