"""Items as rival encodings see them: other words for the bazaar's texts, TF-IDF against its definition, tables."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from hawker.benchmarks.embeddings_items import (
    SENTENCES,
    TITLES,
    UNTOLD,
    TfidfEncoder,
    encoded,
    reworded,
    texts_of,
    with_items,
)
from hawker.benchmarks.fidelity_artefacts import cached_logs
from hawker.shop.language import HashedEncoder
from hawker.shop.logs import read_logs
from hawker.simulators.bazaar import BazaarWorld

NO_CONTENT = {
    "a",
    "and",
    "for",
    "from",
    "in",
    "is",
    "it",
    "its",
    "more",
    "of",
    "on",
    "than",
    "that",
    "the",
    "to",
    "up",
    "with",
}
"""Words that tell nothing of an item."""


def words(texts: list[str]) -> set[str]:
    return set(re.findall(r"\w+", " ".join(texts).lower()))


def test_other_words_are_other_words(bazaar: BazaarWorld):
    p = bazaar.parameters
    nouns = [noun for category in p.categories for noun in category.nouns]
    shared = words([*TITLES, *SENTENCES, *nouns]) & words([*TITLES.values(), *SENTENCES.values()])
    assert shared <= NO_CONTENT
    assert set(TITLES) == {title for style in p.styles for title in style.titles}
    assert set(SENTENCES) == {
        *(text for style in p.styles for text in style.texts),
        *(t for q in p.qualities for t in q),
    }
    assert len(set(TITLES.values())) == len(TITLES)
    assert len(set(SENTENCES.values())) == len(SENTENCES)


def test_every_item_of_the_bazaar_can_be_reworded(bazaar: BazaarWorld):
    items = bazaar.items.table
    other = reworded(items, np.ones(len(items), bool))
    assert (other["title"] != items["title"]).all()
    assert not words(list(other["description"])) & (words(list(items["description"])) - NO_CONTENT)
    kept = [name for name in items if name not in ("title", "description")]
    pd.testing.assert_frame_equal(other[kept], items[kept])


def two_items() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": ["a", "b"],
            "title": ["Eco kite", "Pared-back tent"],
            "description": [
                "Kind to the planet and fully compostable. Thin and feels cheap.",
                "A quiet shape in one plain colour. Does its job and not more.",
            ],
            "category": ["toys", "outdoor"],
            "price": [10.0, 70.0],
            "stock": [3, 0],
            "popularity": [55.0, 90.0],
            "bid": [0.0, 0.3],
        }
    )


def test_rewording_by_hand():
    other = reworded(two_items(), np.array([False, True]))
    assert other.loc[0].equals(two_items().loc[0])
    assert other.loc[1, "title"] == "Streamlined tent"
    assert other.loc[1, "description"] == "Uncluttered, monochrome and sleek. Adequate for occasional tasks."


@pytest.mark.parametrize(
    ("column", "text"), [("title", "Ecological kite"), ("description", "A quiet shape in one plain colour. And more.")]
)
def test_a_text_without_other_words_is_refused(column: str, text: str):
    items = two_items()
    items.loc[0, column] = text
    with pytest.raises(ValueError, match="no other words"):
        reworded(items, np.array([True, False]))


def test_tfidf_is_what_its_definition_says():
    texts = ["red kite", "red red tent", "blue tent with lamp", "lamp"]
    encoder = TfidfEncoder(texts, 50, 0)
    assert encoder.width == 4, "as many as texts"
    found = encoder.encode(texts)
    plain = TfidfVectorizer(sublinear_tf=True).fit_transform(texts).toarray()
    np.testing.assert_allclose(found @ found.T, plain @ plain.T, atol=1e-5)
    np.testing.assert_array_equal(encoder.encode(["boat", ""]), np.zeros((2, 4)))
    assert TfidfEncoder(texts, 2, 0).encode(texts).shape == (4, 2)
    np.testing.assert_array_equal(found, TfidfEncoder(texts, 50, 0).encode(texts))


def test_tables_tell_what_they_should():
    items, encoder = two_items(), HashedEncoder(16)
    plain = encoded(items, None)
    assert list(plain) == [name for name in items if name not in UNTOLD]
    told = encoded(items, encoder)
    np.testing.assert_array_equal(np.stack(told.pop("image_embedding")), encoder.encode(texts_of(items)))
    pd.testing.assert_frame_equal(told, plain)


def test_a_log_with_other_items(bazaar: BazaarWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path))
    logs = cached_logs(bazaar, 10, 20, 1, lambda _: None)
    items = encoded(bazaar.items.table, HashedEncoder(8))
    before, after = read_logs(logs), read_logs(with_items(logs, items, tmp_path / "other"))
    assert before.impressions is not None
    assert after.impressions is not None
    assert after.items is not None
    pd.testing.assert_frame_equal(before.impressions, after.impressions)
    np.testing.assert_array_equal(np.stack(after.items["image_embedding"]), np.stack(items["image_embedding"]))
    assert before.digest != after.digest
    assert after.digest == read_logs(with_items(logs, items, tmp_path / "again")).digest, "so that fits are found"
