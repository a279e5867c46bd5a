"""The bank of lines: every text once, in a fixed order."""

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.shop.catalog import TEXT_VARIANCE
from hawker.shop.errors import InputError
from hawker.shop.language import HashedEncoder, load_encoder
from hawker.shop.lines import ROOM, Lines

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
    assert lines.scaled.var(0).sum() == pytest.approx(TEXT_VARIANCE, rel=1e-4)
    assert lines.scaled * lines.scale == pytest.approx(lines.vectors, abs=1e-5)


def test_axes_are_few_and_keep_what_lines_have_in_common(lines):
    wide = HashedEncoder(ROOM).encode(lines.texts)
    centred = wide - wide.mean(0)
    assert lines.axes.shape == (ROOM, 2)  # three points, less their mean
    assert lines.axes.T @ lines.axes == pytest.approx(np.eye(2), abs=1e-5)
    assert lines.vectors @ lines.vectors.T == pytest.approx(centred @ centred.T, abs=1e-5)
    assert (np.diff(lines.vectors.var(0)) < 0).all()


def test_other_lines_stand_on_the_same_axes(lines):
    again = lines.with_texts((*lines.texts, "made by machines"), encoder())
    assert again.scaled[:3] == pytest.approx(lines.scaled, abs=1e-5)
    near, far = again.scaled[3] @ again.scaled[2], again.scaled[3] @ again.scaled[1]
    assert near > 0 > far  # it shares words with "made by hand"


def test_an_encoder_wider_than_hashed_lines_need_keeps_its_width(monkeypatch):
    assert Lines.from_impressions(log(TEXTS), HashedEncoder(4_096)).centre.shape == (4_096,)
    monkeypatch.setattr("hawker.shop.lines.AXES", 1)
    assert Lines.from_impressions(log(TEXTS), encoder()).vectors.shape == (3, 1)


def test_long_banks_find_their_axes_by_some_of_their_lines(monkeypatch):
    texts = [f"line number {i} of a long bank" for i in range(40)]
    whole = Lines.from_impressions(log(texts), encoder())
    monkeypatch.setattr("hawker.shop.lines.ENOUGH", 10)
    some = Lines.from_impressions(log(texts), encoder())
    assert some.vectors.shape[0] == 40
    assert some.vectors.shape[1] == 10 < whole.vectors.shape[1]  # they are centred by all
    assert some.scaled.var(0).sum() == pytest.approx(TEXT_VARIANCE, rel=1e-4)


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
