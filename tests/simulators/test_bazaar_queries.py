import dataclasses

import numpy as np
import pytest

from hawker.shop.search import terms
from hawker.simulators.bazaar_parameters import BazaarParameters, load_bazaar
from hawker.simulators.bazaar_queries import Queries, make_queries
from hawker.simulators.bazaar_shop import BazaarItems, make_items


@pytest.fixture(scope="module")
def parameters() -> BazaarParameters:
    return load_bazaar("search")


@pytest.fixture(scope="module")
def items(parameters: BazaarParameters) -> BazaarItems:
    return make_items(parameters)


@pytest.fixture(scope="module")
def queries(parameters: BazaarParameters, items: BazaarItems) -> Queries:
    assert parameters.search is not None
    return make_queries(parameters, parameters.search, items)


def found(queries: Queries, text: str) -> int:
    assert queries.texts.count(text) == 1
    return queries.texts.index(text)


def test_chances_add_up_to_what_the_parameters_say(parameters: BazaarParameters, queries: Queries):
    box = parameters.search
    assert box is not None
    assert queries.chance.shape == (len(parameters.segments), len(queries.texts))
    assert queries.relevance.shape == (len(queries.texts), parameters.shop.items)
    assert queries.chance.sum(1) == pytest.approx(1.0)
    assert (queries.chance > 0).all()
    names = {word for entry in (*parameters.categories, *parameters.styles) for word in terms(entry.name)}
    names |= {word for category in parameters.categories for noun in category.nouns for word in terms(noun)}
    names |= {word for style in parameters.styles for title in style.titles for word in terms(title)}
    strange = [not set(terms(text)) <= names for text in queries.texts]
    # Either of two words, where a style is wanted, may be a synonym: of a kind always there is one, of a style too.
    plain = (1 - box.synonym) * ((1 - box.style) + box.style * (1 - box.synonym))
    assert queries.chance[:, np.logical_not(strange)].sum(1) == pytest.approx(plain, abs=0.02)


def test_tastes_decide_what_is_wanted(parameters: BazaarParameters, queries: Queries):
    """The gear seeker of the file has the taste 1.3 of outdoor and -0.7 of beauty: e^2 times as many queries."""
    seeker = [segment.name for segment in parameters.segments].index("gear seeker")
    tent, soap = (queries.chance[seeker, found(queries, text)] for text in ("tent", "soap bar"))
    assert tent / soap == pytest.approx(np.exp(2.0))
    sport, luxury = (queries.chance[seeker, found(queries, f"{word} tent")] for word in ("gym", "posh"))
    assert sport / luxury == pytest.approx(np.exp(0.95 + 0.25))


@pytest.mark.parametrize("text", ["skillet", "frying pan"])
def test_grades_of_a_kind(parameters: BazaarParameters, items: BazaarItems, queries: Queries, text: str):
    grade = queries.relevance[found(queries, text)]
    pan = items.table["title"].str.endswith("frying pan").to_numpy()
    kitchen = (items.table["category"] == "kitchen").to_numpy()
    assert (grade[pan] == 3).all()
    assert (grade[kitchen & ~pan] == 1).all()
    assert (grade[~kitchen] == 0).all()


def test_grades_of_a_kind_with_a_style(items: BazaarItems, queries: Queries):
    grade = queries.relevance[found(queries, "cottage teapot")]  # the style that titles call Rustic, Farmhouse, Country
    teapot = items.table["title"].str.endswith("teapot").to_numpy()
    rustic = items.table["title"].str.match("Rustic|Farmhouse|Country").to_numpy()
    assert (grade[teapot & rustic] == 3).all()
    assert (grade[teapot & ~rustic] == 2).all()
    assert set(grade[~teapot]) == {0, 1}


def test_grades_of_a_category(items: BazaarItems, queries: Queries):
    grade = queries.relevance[found(queries, "cosmetics")]
    assert np.array_equal(grade == 3, items.table["category"] == "beauty")
    assert set(grade) == {0, 3}


def test_hardly_a_title_has_a_synonym(parameters: BazaarParameters, items: BazaarItems):
    """What they stand for is not to be found by words of titles and categories, but for parts of four."""
    assert parameters.search is not None
    known = {word for column in ("title", "category") for text in items.table[column] for word in terms(text)}
    said = [words for entry in parameters.search.synonyms for words in entry.words]
    partly = {words for words in said if set(terms(words)) & known}
    assert partly == {"hiking gear", "photo holder", "construction kit", "green"}
    assert len(said) > 80


def test_a_box_that_nobody_types_synonyms_into(parameters: BazaarParameters, items: BazaarItems):
    assert parameters.search is not None
    plain = make_queries(parameters, dataclasses.replace(parameters.search, synonym=0.0, style=0.0), items)
    likely = {plain.texts[i] for i in np.flatnonzero(plain.chance[0] > 0)}
    nouns = {noun for category in parameters.categories for noun in category.nouns}
    assert likely == nouns | {category.name for category in parameters.categories}
