import numpy as np
import pandas as pd
import pytest

from hawker.shop.language import HashedEncoder
from hawker.shop.search import Search
from hawker.shop.search_fit import Shown, fit_search

KINDS = ["teapot", "lamp", "kite", "scarf"]
LOOKS = ["Rustic", "Retro", "Plain"]
ITEMS = pd.DataFrame(
    {
        "item_id": [f"{look}-{kind}" for look in LOOKS for kind in KINDS],
        "title": [f"{look} {kind}" for look in LOOKS for kind in KINDS],
        "category": [{"teapot": "kitchen", "lamp": "home"}.get(kind, "leisure") for _ in LOOKS for kind in KINDS],
    }
)
MEANT = {"teapot": "teapot", "brewer": "teapot", "lantern": "lamp", "shawl": "scarf"}


def shown(n: int, seed: int = 0, liked: float = 1.5, effect: float = 2.0) -> Shown:
    """Impressions of items drawn evenly; item 0 is liked whatever is asked, and what is meant is clicked more."""
    generator = np.random.default_rng(seed)
    item, position = generator.integers(len(ITEMS), size=n), generator.integers(5, size=n)
    query = generator.choice(np.array([*MEANT, None], object), n)
    kinds = np.array(KINDS)[item % len(KINDS)]
    meant = np.array([MEANT.get(text, "") for text in query]) == kinds
    asked = np.array([text is not None for text in query])
    odds = -2.0 - 0.3 * position + liked * (item == 0) + effect * meant - 0.5 * (asked & ~meant)
    return Shown(query, item, position, generator.random(n) < 1 / (1 + np.exp(-odds)))


@pytest.fixture(scope="module")
def learned() -> Search:
    search = fit_search(ITEMS, shown(20_000), HashedEncoder(32))
    assert search is not None
    return search


def test_words_that_no_item_has_are_learned_from_clicks(learned: Search):
    match = learned.match(list(MEANT))
    for row, kind in zip(match, MEANT.values(), strict=True):
        own = np.array([title.endswith(kind) for title in ITEMS["title"]])
        assert row[own].min() > row[~own].max() + 1.0
        assert row[own].mean() == pytest.approx(2.0, abs=0.5)
        assert row[~own].mean() == pytest.approx(-0.5, abs=0.4)


def test_what_is_liked_is_no_answer_to_every_query(learned: Search):
    """Item 0 is a teapot that is clicked more, query or not: a query for lamps does not add to that."""
    lamps = learned.match(["lantern"])[0]
    teapots = [i for i, title in enumerate(ITEMS["title"]) if title.endswith("teapot")]
    assert lamps[0] == pytest.approx(lamps[teapots[1:]].mean(), abs=0.3)


def test_the_same_log_the_same_search(learned: Search):
    again = fit_search(ITEMS, shown(20_000), HashedEncoder(32))
    assert again is not None
    assert np.array_equal(again.match(list(MEANT)), learned.match(list(MEANT)))


def test_rare_words_are_not_learned():
    rows = shown(2_000)
    query = np.array([None] * 2_000, object)
    query[:5] = "samovar"
    query[5:100] = "teapot"
    search = fit_search(ITEMS, rows._replace(query=query), HashedEncoder(8))
    assert search is not None
    assert search.asked("samovar") == ()
    assert search.asked("teapot") == ("teapot",)


@pytest.mark.parametrize("text", [None, "", "!?", "of the"])
def test_a_log_whose_queries_say_nothing(text: object):
    rows = shown(200)
    assert fit_search(ITEMS, rows._replace(query=np.array([text] * 200, object)), HashedEncoder(8)) is None


@pytest.mark.parametrize("clicked", [False, True])
def test_a_log_that_teaches_nothing(clicked: bool):
    rows = shown(200)
    assert fit_search(ITEMS, rows._replace(clicked=np.full(200, clicked)), HashedEncoder(8)) is None
