import math

import numpy as np
import pandas as pd
import pytest

from hawker.simulators.bazaar_parameters import BazaarParameters, Cue, Lexicon, load_bazaar
from hawker.simulators.bazaar_shop import BazaarItems, CopyBank, make_bank, make_items, read_cues


@pytest.fixture(scope="module")
def parameters() -> BazaarParameters:
    return load_bazaar()


@pytest.fixture(scope="module")
def items(parameters: BazaarParameters) -> BazaarItems:
    return make_items(parameters)


@pytest.fixture(scope="module")
def bank(parameters: BazaarParameters) -> CopyBank:
    return make_bank(parameters.lexicon)


def test_the_same_parameters_make_the_same_items(parameters: BazaarParameters, items: BazaarItems):
    again = make_items(parameters)
    pd.testing.assert_frame_equal(again.table, items.table)
    assert np.array_equal(again.appeal, items.appeal)


def test_what_the_shop_is_like(parameters: BazaarParameters, items: BazaarItems):
    table, shop = items.table, parameters.shop
    assert len(table) == shop.items == 500
    assert table["item_id"].is_unique
    assert not {"launched", "quality", "style"} & set(table)
    assert abs((~items.launched).mean() - shop.new_share) < 0.06
    assert 0 < (table["stock"] == 0).mean() < 0.07
    assert abs((table["bid"] > 0).mean() - shop.advertised) < 0.05
    assert 0.7 < items.appeal.std() < 1.3


def test_words_carry_style_noun_and_quality(parameters: BazaarParameters, items: BazaarItems):
    levels = len(parameters.qualities)
    for i, row in enumerate(items.table.itertuples()):
        category = parameters.categories[items.category[i]]
        assert row.category == category.name
        assert row.title.endswith(category.nouns)
        assert row.description.endswith(parameters.qualities[min(int(items.quality[i] * levels), levels - 1)])
        assert any(row.title.startswith(s.titles) and row.description.startswith(s.texts) for s in parameters.styles)


def test_appeal_by_hand(parameters: BazaarParameters, items: BazaarItems):
    """The item's own deviation, which no table shows, cancels between two segments."""
    first, second = parameters.segments[:2]
    for i in (0, 17, 321):
        row, category = items.table.loc[i], items.category[i]
        style = next(k for k, s in enumerate(parameters.styles) if row.title.startswith(s.titles))
        relative = math.log(row.price / parameters.categories[category].price)  # the price is rounded to cents
        by_hand = [
            s.category_taste[category]
            + s.style_taste[style]
            + s.quality * (items.quality[i] - 0.5)
            - s.price * relative
            for s in (first, second)
        ]
        assert items.appeal[0, i] - items.appeal[1, i] == pytest.approx(by_hand[0] - by_hand[1], abs=2e-3)


def test_popularity_rises_with_the_average_appeal(parameters: BazaarParameters, items: BazaarItems):
    average = np.average(items.appeal, axis=0, weights=[s.share for s in parameters.segments])
    assert 0.5 < np.corrcoef(average, np.log(items.table["popularity"]))[0, 1] < 0.95


def test_the_bank(parameters: BazaarParameters, bank: CopyBank):
    assert len(bank.texts) == len(set(bank.texts)) < 300
    assert bank.logged.sum() == (~bank.logged).sum() == 94
    assert bank.cues.sum(1).min() == 1
    assert bank.cues.sum(1).max() == 2  # "last chance to save" presses and promises
    assert bank.spam.sum() == 24
    assert bank.claims_offer.sum() == 24


def test_every_form_says_its_cues_and_no_other(parameters: BazaarParameters):
    cues = parameters.lexicon.cues
    forms = sorted({form for cue in cues for form in (*cue.logged, *cue.unseen)})
    found = read_cues(parameters.lexicon, forms)
    for form, row in zip(forms, found, strict=True):
        assert row.tolist() == [form in (*cue.logged, *cue.unseen) for cue in cues], form


def test_no_unseen_form_occurs_in_logs(parameters: BazaarParameters, bank: CopyBank):
    logged = [text.lower() for text, seen in zip(bank.texts, bank.logged, strict=True) if seen]
    for cue in parameters.lexicon.cues:
        assert not [form for form in cue.unseen for text in logged if form.lower() in text]


def test_cues_are_read_from_any_text():
    lexicon = Lexicon(("{form}",), (Cue("a", ("be quick",), ("100% new!",)), Cue("b", ("new",), ())))
    texts = ["Be QUICK, please", "be quickly done", "A 100% new! one", "renewed", ""]
    assert read_cues(lexicon, texts).tolist() == [
        [True, False],
        [False, False],
        [True, True],
        [False, False],
        [False, False],
    ]
    assert read_cues(lexicon, []).shape == (0, 2)


def test_a_bank_without_cues_is_empty():
    bank = make_bank(Lexicon((), ()))
    assert bank.texts == ()
    assert bank.cues.shape == (0, 0)
