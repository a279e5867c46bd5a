import json

import numpy as np
import pandas as pd
import pytest

from hawker.shop.catalog import TEXT_VARIANCE, Catalog, TextSchema
from hawker.shop.errors import InputError
from hawker.shop.language import HashedEncoder


@pytest.fixture
def catalog() -> Catalog:
    items = pd.DataFrame(
        {
            "item_id": ["tea", "cup", "pot"],
            "title": ["Tea", "Cup", "Pot"],
            "description": "good",
            "stock": [1.0, 2.0, 3.0],
            "price": [3.0, 5.0, np.nan],
            "category": ["food", None, "ware"],
        }
    )
    return Catalog.from_items(items)


def test_items_keep_their_order_and_their_features(catalog: Catalog):
    assert len(catalog) == 3
    assert catalog.item_ids == ("tea", "cup", "pot")
    assert catalog.features.columns == ["price", "category"]
    assert catalog.vectors.tolist() == [[3, 1, 0], [5, 0, 0], [4, 0, 1]]
    assert catalog.vectors.dtype == np.float32


def test_ids_alone_make_a_catalog():
    catalog = Catalog.from_items(pd.DataFrame({"item_id": [7, 8]}))
    assert catalog.item_ids == ("7", "8")
    assert catalog.vectors.shape == (2, 0)
    assert catalog.index([8, "7"], "here").tolist() == [1, 0]


def test_index_of_items(catalog: Catalog):
    found = catalog.index(iter(["pot", "tea", "pot"]), "here")
    assert found.tolist() == [2, 0, 2]
    assert found.dtype == np.int64
    assert catalog.index([], "here").shape == (0,)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["tea", "poot"], "row 3: item not in the catalog; got 'poot'; did you mean 'pot'?"),
        (["zebra"], "row 3: item not in the catalog; got 'zebra'; known: cup, pot, tea"),
        ([None], "row 3: item not in the catalog"),
        ([["tea"]], "row 3: item not in the catalog"),
        ([7], "row 3: item not in the catalog; got '7'"),
    ],
)
def test_unknown_items(catalog: Catalog, ids: list[object], message: str):
    with pytest.raises(InputError) as caught:
        catalog.index(ids, "row 3")
    assert str(caught.value).startswith(message)


def test_a_catalog_survives_json(catalog: Catalog):
    again = Catalog.from_dict(json.loads(json.dumps(catalog.to_dict())), catalog.vectors, "here")
    assert again.item_ids == catalog.item_ids
    assert again.features == catalog.features
    assert again.vectors is catalog.vectors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: [], "bundle: not a catalog"),
        (lambda values: {"item_ids": values["item_ids"]}, "bundle: not a catalog; got \"KeyError('features')\""),
        (lambda values: {"features": values["features"]}, "bundle: not a catalog; got \"KeyError('item_ids')\""),
        (lambda values: values | {"item_ids": 3}, "bundle: not a catalog"),
        (lambda values: values | {"features": {}}, "bundle: not a feature schema"),
        (lambda values: values | {"image_width": "wide"}, "bundle: not a catalog"),
        (lambda values: values | {"image_width": 2}, "bundle: item vectors do not fit the catalog; got (3, 3)"),
        (
            lambda values: values | {"item_ids": ["tea"]},
            "bundle: item vectors do not fit the catalog; got (3, 3), expected shape (1, 3)",
        ),
        (
            lambda values: values | {"features": {"numeric": {}, "categories": {}}},
            "bundle: item vectors do not fit the catalog; got (3, 3), expected shape (3, 0)",
        ),
    ],
)
def test_what_is_no_catalog(catalog: Catalog, change, message: str):
    with pytest.raises(InputError) as caught:
        Catalog.from_dict(change(catalog.to_dict()), catalog.vectors, "bundle")
    assert str(caught.value).startswith(message)


def test_texts_follow_the_features():
    items = pd.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ["red shoes", None, "blue hat"],
            "description": ["", "", "wool"],
            "price": 1.0,
        }
    )
    encoder = HashedEncoder(16)
    catalog = Catalog.from_items(items, encoder)
    assert catalog.text == TextSchema("hashed:16", encoder.digest, 16)
    assert catalog.width == catalog.vectors.shape[1] == 1 + 16
    assert np.array_equal(catalog.vectors[:, 1:], encoder.encode(["red shoes", "", "blue hat. wool"]))
    scaled = (catalog.vectors - catalog.centre) / catalog.spread
    assert scaled.mean(0) == pytest.approx(np.zeros(17), abs=1e-6)
    assert scaled[:, 1:].var(0).sum() == pytest.approx(TEXT_VARIANCE, rel=1e-5)
    again = Catalog.from_dict(json.loads(json.dumps(catalog.to_dict())), catalog.vectors, "here")
    assert again.text == catalog.text
    assert np.array_equal(again.spread, catalog.spread)
    with pytest.raises(
        InputError, match=r"item vectors do not fit the catalog; got \(3, 1\), expected shape \(3, 17\)"
    ):
        Catalog.from_dict(catalog.to_dict(), catalog.vectors[:, :1], "here")


@pytest.mark.parametrize("titles", [[None, None], ["", ""], None])
def test_a_catalog_without_texts(titles):
    items = pd.DataFrame({"item_id": ["a", "b"], "price": [1.0, 2.0]})
    if titles is not None:
        items["title"] = titles
    catalog = Catalog.from_items(items, HashedEncoder(16))
    assert (catalog.text, catalog.width) == (None, 1)


def test_one_text_for_all_tells_nothing_apart():
    catalog = Catalog.from_items(pd.DataFrame({"item_id": ["a", "b"], "title": ["shoe", "shoe"]}), HashedEncoder(16))
    assert np.isfinite(catalog.spread).all()
    assert ((catalog.vectors - catalog.centre) / catalog.spread == 0).all()


def test_image_embeddings_follow_the_texts():
    items = pd.DataFrame({"item_id": list("abcd"), "title": ["red shoe", "hat", "wool", "tin"], "price": 1.0})
    images = [[100.0, 3.0], None, np.array([102.0, 3.0]), []]
    catalog = Catalog.from_items(items.assign(image_embedding=images), HashedEncoder(16))
    assert (catalog.width, catalog.image_width) == (1 + 16 + 2, 2)
    assert catalog.vectors.dtype == np.float32
    assert catalog.vectors[:, 17:].tolist() == [[100, 3], [101, 3], [102, 3], [101, 3]]
    scaled = (catalog.vectors - catalog.centre) / catalog.spread
    assert scaled[[1, 3], 17:].tolist() == [[0, 0], [0, 0]]
    assert scaled[:, 1:17].var(0).sum() == pytest.approx(TEXT_VARIANCE, rel=1e-5)
    assert scaled[:, 17:].var(0).sum() == pytest.approx(TEXT_VARIANCE, rel=1e-5)
    again = Catalog.from_dict(json.loads(json.dumps(catalog.to_dict())), catalog.vectors, "here")
    assert again.image_width == 2
    assert np.array_equal(again.spread, catalog.spread)
    assert np.array_equal(again.centre, catalog.centre)
    without = Catalog.from_items(items.assign(image_embedding=images))
    assert (without.width, without.text) == (1 + 2, None)


@pytest.mark.parametrize(
    "images", [[None, None], [[], []], [np.nan, pd.NA], [[0.5, 7.0], [0.5, 7.0]], [[1e12], [-1e12]]]
)
def test_images_that_are_missing_alike_or_huge(images):
    catalog = Catalog.from_items(pd.DataFrame({"item_id": ["a", "b"], "image_embedding": images}))
    scaled = (catalog.vectors - catalog.centre) / catalog.spread
    assert np.isfinite(scaled).all()
    assert scaled.var(0).sum() == pytest.approx(TEXT_VARIANCE if images[0] == [1e12] else 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([1, 2, 3], "an image embedding of another length; got '3 entries', expected 2 as in item tea; embed all"),
        ([1.0, np.nan], "not an image embedding; got 'nan', expected a list of numbers of size up to 1e+12"),
        ([1.0, np.inf], "not an image embedding; got 'inf'"),
        ([1.0, None], "not an image embedding; got 'None'"),
        ([1.0, "0.5"], "not an image embedding; got '0.5'"),
        ([True, False], "not an image embedding; got 'True'"),
        ([[1.0], [2.0, 3.0]], "not an image embedding; got '[1.0]'"),
        (np.ones((2, 2)), "not an image embedding; got '[1.0, 1.0]'"),
        ("0.5 0.5", "not an image embedding; got '0.5 0.5'"),
        (0.5, "not an image embedding; got '0.5'"),
    ],
)
def test_bad_image_embeddings(image, message: str):
    items = pd.DataFrame({"item_id": ["tea", "cup"], "image_embedding": [[0.1, 0.2], image]})
    with pytest.raises(InputError) as caught:
        Catalog.from_items(items)
    assert str(caught.value).startswith(f"items column image_embedding, item cup: {message}")
