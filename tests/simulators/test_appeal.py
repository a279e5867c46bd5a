"""The heads that answer pages, against what their weights say row by row."""

import dataclasses

import pytest
import torch

from hawker.shop.context import ContextBuilder
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.simulators.appeal import Appeal, Architecture, Recorded
from hawker.simulators.memory import TOLD
from hawker.simulators.rows import Rows, encode_log
from hawker.simulators.shopper import ShopperModel


@pytest.fixture(scope="module")
def model_and_rows(journeys) -> tuple[ShopperModel, Rows]:
    """A member with every head and random weights, and affinities."""
    impressions, items, _ = journeys
    lines = Lines.from_impressions(impressions, load_encoder("hashed:16", torch.device("cpu")))
    builder = ContextBuilder.fit(impressions, items)
    rows = encode_log(impressions[:200], builder, lines, torch.device("cpu")).rows
    generator = torch.Generator().manual_seed(3)
    model = ShopperModel(builder, 3, Architecture(2, 2, 6), 0.1, generator, Recorded.of(rows), lines)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    model.in_view = None
    affinity = torch.rand(len(rows), generator=generator)
    return model.requires_grad_(False).eval(), dataclasses.replace(rows, affinity=affinity)


def by_hand(head: Appeal, model: ShopperModel, person, wishes, rows: Rows, row: int) -> torch.Tensor:
    """The log-odds of one row, part by part."""
    page, item, line = (int(part[row]) for part in (rows.page, rows.item, rows.line))
    known, vector = person[page], model.item_vectors[item]
    odds = head.base + head.shopper_effect(known) + head.item_effect(vector) + head.own_effect.weight[item]
    liking, hidden = head.shopper_taste(known), head.own_taste.weight.shape[1]
    liking = liking if wishes is None else liking + wishes[page, :hidden]
    odds = odds + liking @ (head.item_taste(vector) + head.own_taste.weight[item])
    odds = odds + head.affinity_effect * rows.affinity[row]
    if line >= 0:
        said, vector = head.shopper_line_taste(known), model.line_vectors[line]
        said = said if wishes is None else said + wishes[page, -hidden:]
        odds = odds + said @ head.line_taste(vector) + head.line_effect(vector)
    if tier := int(rows.offer[row]):
        odds = odds + head.offer_effect[tier - 1] + head.shopper_offer_taste(known)[tier - 1]
    return odds + rows.ad[row] * (head.ad_effect + head.shopper_ad_taste(known))


@pytest.mark.parametrize("wished", [False, True])
def test_log_odds_are_the_sum_of_their_parts(model_and_rows, wished):
    model, rows = model_and_rows
    assert (rows.line < 0).any() or len(model.line_vectors) > 1
    generator = torch.Generator().manual_seed(1)
    person = torch.randn(len(rows.shopper), len(model.shopper_centre) + TOLD, generator=generator)
    wishes = torch.randn(len(person), model.memory.wishes, generator=generator) if wished else None
    for head in model.heads:
        found = head(person, rows, model.item_vectors, model.line_vectors, None, wishes)
        for row in range(0, len(rows), 7):
            torch.testing.assert_close(found[row], by_hand(head, model, person, wishes, rows, row)[0])


def test_an_items_own_vectors_can_be_left_out(model_and_rows):
    model, rows = model_and_rows
    head, person = model.click, torch.zeros(len(rows.shopper), len(model.shopper_centre) + TOLD)
    keep = torch.ones(len(model.item_vectors))
    keep[rows.item[0]] = 0.0
    left = head(person, rows, model.item_vectors, model.line_vectors, keep)
    whole = head(person, rows, model.item_vectors, model.line_vectors, None)
    assert torch.equal(left[rows.item != rows.item[0]], whole[rows.item != rows.item[0]])
    assert not torch.isclose(left[0], whole[0])
