"""The bank of lines: every text once, in a fixed order."""

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.shop.errors import InputError
from hawker.shop.language import load_encoder
from hawker.shop.lines import Lines

TEXTS = ["made by hand", None, "big sale", "big sale", "a last pair", None]


def encoder():
    return load_encoder("hashed:32", torch.device("cpu"))


def log(texts: list[str | None]) -> pd.DataFrame:
    return pd.DataFrame({"copy": pd.Series(texts, dtype="str")})


@pytest.fixture
def lines() -> Lines:
    return Lines.from_impressions(log(TEXTS), encoder())


def test_every_text_stands_once_in_alphabetical_order(lines):
    assert lines.texts == ("a last pair", "big sale", "made by hand")
    assert len(lines) == 3
    assert np.array_equal(lines.vectors, encoder().encode(lines.texts))
    shuffled = Lines.from_impressions(log(TEXTS[::-1]), encoder())
    assert shuffled.texts == lines.texts
    assert np.array_equal(shuffled.scaled, lines.scaled)


@pytest.mark.parametrize("texts", [[None, None], []])
def test_a_log_without_copy_has_no_bank(texts):
    assert Lines.from_impressions(log(texts), encoder()) is None


def test_a_log_without_the_column_has_no_bank():
    assert Lines.from_impressions(pd.DataFrame({"item_id": ["a"]}), encoder()) is None


def test_scaled_vectors_are_centred_and_share_one_scale(lines):
    assert lines.scaled.dtype == np.float32
    assert lines.scaled.mean(0) == pytest.approx(0.0, abs=1e-5)
    ratio = lines.scaled * lines.scale
    assert ratio == pytest.approx(lines.vectors - lines.vectors.mean(0), abs=1e-5)


def test_one_line_is_scaled_by_nothing():
    one = Lines.from_impressions(log(["big sale"]), encoder())
    assert one.scale == 1.0
    assert not one.scaled.any()


def test_numbers_of_texts(lines):
    assert lines.index(log(TEXTS)["copy"]).tolist() == [2, -1, 1, 1, 0, -1]
    assert lines.index(log([None, None])["copy"]).tolist() == [-1, -1]
    assert lines.index(log([])["copy"]).tolist() == []
    categories = log(TEXTS)["copy"].astype("category")
    assert lines.index(categories).tolist() == [2, -1, 1, 1, 0, -1]
    assert lines.index(log(TEXTS)["copy"]).dtype == np.int64


def test_an_unknown_text_is_named_and_cut_short(lines):
    with pytest.raises(InputError, match="column copy: a line that is not in the bank; got 'never written'"):
        lines.index(log(["big sale", "never written"])["copy"])
    with pytest.raises(InputError) as caught:
        lines.index(log(["x" * 1_000_000])["copy"])
    assert len(str(caught.value)) < 200
