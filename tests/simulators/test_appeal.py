"""Tables of what a page can hold, against the heads that answer whole pages."""

import dataclasses

import pytest
import torch

from hawker.shop.context import ContextBuilder
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines
from hawker.simulators.appeal import CLICKS_ALONE, Architecture, Recorded
from hawker.simulators.rows import Rows, encode_log
from hawker.simulators.shopper import ShopperModel


@pytest.fixture(scope="module")
def model_and_rows(journeys) -> tuple[ShopperModel, Rows]:
    """A member with every head and random weights, and single impressions without company or affinity."""
    impressions, items, _ = journeys
    lines = Lines.from_impressions(impressions, load_encoder("hashed:16", torch.device("cpu")))
    builder = ContextBuilder.fit(impressions, items)
    rows = encode_log(impressions[:200], builder, lines, torch.device("cpu")).rows
    generator = torch.Generator().manual_seed(3)
    model = ShopperModel(builder, 3, Architecture(2, 2, 6), 0.1, generator, Recorded.of(rows), lines)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    model.in_view = None
    return model.requires_grad_(False).eval(), dataclasses.replace(rows, affinity=torch.zeros_like(rows.affinity))


@pytest.mark.parametrize("wished", [False, True])
def test_tables_add_up_to_what_the_heads_say_of_pages(model_and_rows, wished):
    model, rows = model_and_rows
    carried = torch.rand(len(rows.shopper), model.memory.hidden, generator=torch.Generator().manual_seed(1))
    person = model.person(rows.shopper, model.memory.before(carried, None) if wished else None)
    odds = model.log_odds(person, rows)
    expected = {"click": odds, "purchase": model.conversion_odds(person, rows, odds)}
    page = rows.page
    for tables, whole in zip(model.tables(person), expected.values(), strict=True):
        got = tables.items[page, rows.item] + tables.offers[page, rows.offer] + tables.ads[page] * rows.ad
        got = got + torch.where(rows.line < 0, 0.0, tables.lines[page, rows.line.clamp(min=0)])
        torch.testing.assert_close(got, whole, atol=1e-4, rtol=1e-4)


def test_what_a_log_does_not_record_has_no_table(journeys):
    impressions, items, _ = journeys
    builder = ContextBuilder.fit(impressions, items)
    model = ShopperModel(builder, 3, Architecture(2, 1), 0.1, torch.Generator().manual_seed(0))
    assert model.recorded == CLICKS_ALONE
    click, purchase = model.tables(torch.zeros(4, builder.shopper.width))
    assert click.items.shape == (4, len(builder.catalog))
    assert (click.lines, click.offers, click.ads, purchase) == (None, None, None, None)
