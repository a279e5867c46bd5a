"""A small valid shop, and a way to put its tables on disk."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest


def _impressions(n: int = 60, seed: int = 0) -> pd.DataFrame:
    """Visits of one page and three positions, every optional column present, in the types that reading returns."""
    rng = np.random.default_rng(seed)
    rows = np.arange(n)
    clicked = (rng.random(n) < 0.4).astype("int8")
    converted = np.where(clicked == 1, rng.integers(0, 2, n), 0).astype(float)
    converted[0] = np.nan
    frame = pd.DataFrame(
        {
            "visit_id": rows // 3,
            "page": np.zeros(n, "int32"),
            "position": (rows % 3).astype("int32"),
            "shopper_id": pd.Series([f"s{i // 6}" for i in rows], dtype="str").where(rows % 7 != 0),
            "timestamp": pd.to_datetime("2026-03-01T10:00Z") + pd.to_timedelta(rows // 3, unit="min"),
            "item_id": pd.Series([str(10 + i % 4) for i in rows], dtype="str"),
            "placement": pd.Series(["ad" if i % 3 == 2 else "organic" for i in rows], dtype="str"),
            "clicked": clicked,
            "converted": converted,
            "revenue": np.where(converted == 1, 12.5, 0.0),
            "propensity": np.where(rows % 5 == 0, np.nan, 0.25),
            "copy": pd.Series(["fresh, today" if i % 2 else None for i in rows], dtype="str"),
            "offer": (rows % 2).astype("int32"),
            "query": pd.Series(["tea"] * n, dtype="str"),
            "price_shown": rows + 0.5,
            "ad_bid": np.where(rows % 3 == 2, 0.1, np.nan),
            "segment": pd.Categorical([["new", "old"][i % 2] for i in rows]),
            "age": rng.normal(40, 9, n),
            "affinity.10": rng.random(n).astype("float32"),
        }
    )
    frame["timestamp"] = frame["timestamp"].dt.as_unit("us")
    return frame


def _items() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": pd.Series(["10", "11", "12", "13"], dtype="str"),
            "title": pd.Series(["oolong", "sencha", "rooibos", None], dtype="str"),
            "price": [4.0, 5.0, 6.0, np.nan],
        }
    )


@pytest.fixture
def impressions() -> pd.DataFrame:
    """60 valid impressions of 20 visits."""
    return _impressions()


@pytest.fixture
def items() -> pd.DataFrame:
    """The four items they show."""
    return _items()


@pytest.fixture
def write_logs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function of tables by name that writes them to a new directory, as Parquet or CSV, and returns it."""

    def write(suffix: str = "parquet", **tables: pd.DataFrame) -> Path:
        directory = tmp_path_factory.mktemp("logs")
        for name, frame in tables.items():
            if suffix == "csv":
                frame.to_csv(directory / f"{name}.csv", index=False)
            else:
                frame.to_parquet(directory / f"{name}.parquet", index=False)
        return directory

    return write
