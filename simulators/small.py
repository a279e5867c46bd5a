"""A small shop made on the spot, for trying an environment and for tests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from hawker.shop.context import ContextBuilder
from hawker.simulators.config import PlantedEffects
from hawker.simulators.planted import PlantedWorld


def small_tables(
    n_items: int = 20, size: int = 3, n_rows: int = 500, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return impressions of the uniform strategy that nobody clicked on, and the items.

    Args:
        n_items: Items of the catalog.
        size: Positions of a page.
        n_rows: Impressions, each a visit of its own by an unknown shopper.
        seed: Decides every value.
    """
    generator = np.random.default_rng(seed)
    ids = [f"item-{i}" for i in range(n_items)]
    items = pd.DataFrame(
        {
            "item_id": ids,
            "category": generator.choice(["shoes", "shirts", "hats"], n_items),
            "price": generator.gamma(4.0, 10.0, n_items).round(2),
        }
    )
    impressions = pd.DataFrame(
        {
            "visit_id": np.arange(n_rows),
            "page": 0,
            "position": generator.integers(size, size=n_rows),
            "shopper_id": pd.Series([None] * n_rows, dtype="str"),
            "timestamp": pd.Timestamp("2026-01-01", tz="UTC") + pd.to_timedelta(np.arange(n_rows) * 60, unit="s"),
            "item_id": generator.choice(ids, n_rows),
            "placement": "organic",
            "clicked": np.zeros(n_rows, np.int8),
            "propensity": 1.0 / n_items,
            "age": generator.normal(40.0, 12.0, n_rows).round(),
            "segment": generator.choice(["new", "loyal", "hunter"], n_rows, p=[0.5, 0.3, 0.2]),
            "affinity.item-0": generator.integers(2, size=n_rows).astype(np.float32),
        }
    )
    return impressions, items


def small_world(n_items: int = 20, size: int = 3, ctr: float = 0.1, seed: int = 0) -> PlantedWorld:
    """Return a world with planted effects on a small shop."""
    impressions, items = small_tables(n_items, size, seed=seed)
    builder = ContextBuilder.fit(impressions, items)
    shoppers = builder.from_impressions(impressions).map(lambda array: torch.from_numpy(np.array(array)))
    return PlantedWorld(builder, shoppers, size, PlantedEffects(ctr=ctr), seed)
