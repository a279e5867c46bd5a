"""What classes expect of a log, page by page."""

import copy
import dataclasses

import pytest
import torch

from hawker.simulators import taste_rows
from hawker.simulators.rows import encode_log
from hawker.simulators.taste_classes import CLASSES, TasteClasses
from hawker.simulators.taste_rows import beliefs_before, believed, believing, believing_apart


@pytest.fixture(scope="module")
def tastes(regulars) -> TasteClasses:
    found = regulars[1].ensembles["train"].tastes
    assert found is not None
    return found


@pytest.fixture(scope="module")
def rows(regulars):
    fitted = regulars[1]
    return encode_log(fitted.read_part("judge"), fitted.builder, fitted.lines, torch.device("cpu")).rows


def test_beliefs_follow_every_shopper_from_page_to_page(tastes, rows):
    """Followed by hand, one shopper and one page at a time."""
    told, tables = beliefs_before(tastes, rows), tastes.utilities()
    assert told.shape == (len(rows.shopper), CLASSES)
    size, n_pages = len(tastes.position), 0
    for who in range(0, len(rows.time), max(len(rows.time) // 12, 1)):
        first, last = rows.time.first[who : who + 2].tolist()
        state = tastes.begin(tastes.scaled(rows.shopper[first : first + 1]))
        for page in range(first, last):
            torch.testing.assert_close(told[page], tastes.beliefs(state)[0], atol=1e-5, rtol=1e-4)
            on_page = (rows.page == page).nonzero().squeeze(1)
            slate = torch.full((1, size), -1)
            slate[0, rows.position[on_page]] = rows.item[on_page]
            clicked, converted = torch.zeros(1, size), torch.zeros(1, size)
            clicked[0, rows.position[on_page]] = rows.clicked[on_page]
            converted[0, rows.position[on_page]] = rows.converted[on_page]
            parts = (rows.item[on_page], rows.line[on_page], rows.offer[on_page], rows.ad[on_page])
            scaled = tastes.scaled(rows.shopper[page].expand(len(on_page), -1))
            click, purchase = (torch.zeros(1, size, CLASSES) for _ in range(2))
            for laid, odds in zip((click, purchase), tastes.log_odds(tables, scaled, parts), strict=True):
                laid[0, rows.position[on_page]] = odds
            leaves = torch.tensor([page + 1 == last or bool(rows.time.number[page + 1] == 0)])
            state = tastes.after(state, (click, purchase), slate, clicked, converted, leaves)
            n_pages += 1
    assert n_pages > 50
    assert (told - told[:1]).abs().max() > 0.05, "nothing was learned of anybody"


def test_what_is_expected_follows_from_beliefs(tastes, rows):
    found = believing(tastes, rows)
    beliefs = beliefs_before(tastes, rows)
    torch.testing.assert_close(found.believed, believed(tastes, beliefs, rows))
    odds = tastes.log_odds(
        tastes.utilities(),
        tastes.scaled(rows.shopper)[rows.page],
        (rows.item, rows.line, rows.offer, rows.ad),
    )
    torch.testing.assert_close(found.believed, tastes.expected(beliefs[rows.page], *odds))
    certain = torch.nn.functional.one_hot(torch.full((len(beliefs),), 2), CLASSES).float()
    own = believed(tastes, certain, rows)
    torch.testing.assert_close(own[:, 0], odds[0][:, 2] - tastes.click.base, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(own[:, 1], odds[1][:, 2] - tastes.purchase.base, atol=1e-4, rtol=1e-4)


def test_blocks_make_no_difference(tastes, rows, monkeypatch):
    whole = believing(tastes, rows)
    monkeypatch.setattr(taste_rows, "BLOCK", 97)
    torch.testing.assert_close(believing(tastes, rows).believed, whole.believed)


def test_each_shopper_is_told_of_by_the_classes_of_their_part(tastes, rows):
    other = copy.deepcopy(tastes)
    with torch.no_grad():
        other.click.item_class.weight.neg_()
    fold = torch.arange(len(rows.time)) % 2
    found = believing_apart([tastes, other], fold, rows).believed
    of_row = fold.repeat_interleave(rows.time.first.diff())[rows.page][:, None]
    expected = torch.where(of_row == 0, believing(tastes, rows).believed, believing(other, rows).believed)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(believing(tastes, rows).believed, believing(other, rows).believed)


def test_without_classes_nothing_is_believed(rows):
    assert believing(None, rows) is rows


def test_pages_that_stand_alone_are_of_new_shoppers(tastes, rows):
    alone = dataclasses.replace(rows, time=None)
    torch.testing.assert_close(beliefs_before(tastes, alone), tastes.beliefs(tastes.begin(tastes.scaled(rows.shopper))))
