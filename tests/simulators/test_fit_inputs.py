"""What ``fit`` reads beside the impressions: texts or none, images, features of shoppers."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.shop.errors import InputError
from hawker.simulators.fit import fit
from hawker.simulators.store import load_shoppers


def silent(line: str) -> None:
    """Take a line of progress and drop it."""


def finite(report: dict) -> bool:
    numbers = [figure[end] for figure in report["figures"].values() for end in ("value", "low", "high")]
    return all(number is None or math.isfinite(number) for number in numbers)


def test_texts_may_be_left_out(journeys, write_logs, fast, tmp_path):
    logs = write_logs(tmp_path / "logs", journeys)
    shoppers, report = fit(logs, tmp_path / "out", dataclasses.replace(fast, encoder="none"), silent)
    assert (shoppers.lines, shoppers.builder.catalog.text) == (None, None)
    assert shoppers.builder.catalog.width == shoppers.builder.catalog.features.width
    assert finite(report)
    assert load_shoppers(tmp_path / "out", torch.device("cpu")).config.encoder == "none"


def test_images_and_features_of_shoppers_are_learned(journeys, write_logs, fast, tmp_path):
    """They stand in tables of their own, and reach the models."""
    impressions, items, pages = journeys
    generator = np.random.default_rng(1)
    images = [None if i == 3 else row for i, row in enumerate(generator.normal(5.0, 0.01, (len(items), 6)).tolist())]
    logs = write_logs(tmp_path / "logs", (impressions, items.assign(image_embedding=images), pages))
    ids = sorted(set(impressions["shopper_id"]))
    pd.DataFrame({"shopper_id": ids, "city": ["Rome", "Oslo"] * (len(ids) // 2)}).to_parquet(logs / "shoppers.parquet")
    shoppers, report = fit(logs, tmp_path / "out", fast, silent)
    assert finite(report)
    assert shoppers.builder.catalog.image_width == 6
    assert "city" in shoppers.builder.shopper.categories
    assert "city" in shoppers.read_part("train")
    model = shoppers.ensembles["train"].models[0]
    assert model.item_vectors.shape[1] == shoppers.builder.catalog.width
    assert model.item_vectors[:, -6:].var(0, correction=0).sum() == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize(("image", "message"), [([1.0], "another length"), ([1.0, math.nan], "not an image embedding")])
def test_bad_image_embeddings_are_one_line(image, message, tables, write_logs, fast, tmp_path):
    impressions, items = tables
    images = [[0.5, 0.5]] * (len(items) - 1) + [image]
    logs = write_logs(tmp_path / "logs", (impressions, items.assign(image_embedding=images)))
    with pytest.raises(
        InputError, match=f"items column image_embedding, item {items['item_id'].iloc[-1]}: .*{message}"
    ):
        fit(logs, tmp_path / "out", fast, silent)
    assert not (tmp_path / "out").exists()
