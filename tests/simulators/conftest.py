"""A small shop with planted clicks, its log on disk, and shoppers fitted to it once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hawker.simulators.config import FitConfig
from hawker.simulators.fit import fit
from hawker.simulators.small import small_tables, small_world
from hawker.simulators.store import FittedShoppers

Tables = tuple[pd.DataFrame, ...]


@pytest.fixture(scope="session")
def tables() -> Tables:
    """1,000 impressions, a fifth of them clicked, and the 20 items they show."""
    impressions, items = small_tables()
    return small_world(ctr=0.2).write_log(1000, impressions, seed=1), items


@pytest.fixture(scope="session")
def fast() -> FitConfig:
    """A fit that takes a second."""
    return FitConfig(members=2, epochs=3, batch=128, device="cpu")


@pytest.fixture(scope="session")
def write_logs() -> Callable[[Path, Tables], Path]:
    """A function that writes impressions, items and, where given, pages into a directory and returns it."""

    def write(directory: Path, tables: Tables) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        for name, table in zip(("impressions", "items", "pages"), tables, strict=False):
            table.to_parquet(directory / f"{name}.parquet", index=False)
        return directory

    return write


@pytest.fixture(scope="session")
def fitted(
    tmp_path_factory: pytest.TempPathFactory, tables: Tables, fast: FitConfig, write_logs: Callable[..., Path]
) -> tuple[Path, FittedShoppers, dict[str, Any]]:
    """A directory with ``logs`` and ``shoppers``, the shoppers and their fidelity report; not to be changed."""
    directory = tmp_path_factory.mktemp("shop")
    logs = write_logs(directory / "logs", tables)
    return directory, *fit(logs, directory / "shoppers", fast, lambda line: None)


@pytest.fixture(scope="session")
def shoppers(fitted: tuple[Path, FittedShoppers, dict[str, Any]]) -> FittedShoppers:
    """The fitted shoppers."""
    return fitted[1]


@pytest.fixture(scope="session")
def journeys() -> Tables:
    """Impressions, items and pages of 80 shoppers who leave and come back, buy, and see copy, offers and ads."""
    generator, items = np.random.default_rng(7), small_tables()[1]
    colours, nouns = ["red", "blue", "old", "new"], ["boot", "scarf", "lamp", "rug", "cup"]
    items["title"] = [f"{colour} {noun}" for noun in nouns for colour in colours]
    rows: list[dict[str, Any]] = []
    pages: list[dict[str, Any]] = []
    for shopper in range(80):
        day = float(generator.integers(10))
        for visit in range(1 + generator.integers(5)):
            candidates = generator.permutation(20)[:8]
            for page in range(1 + generator.integers(4)):
                at = pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(days=day, minutes=10 + 2 * page)
                key = {"visit_id": f"v{shopper}-{visit}", "page": page}
                pages.append(key | {"candidates": [f"item-{i}" for i in sorted(candidates)]})
                ad, offer = generator.integers(-1, 3), int(generator.integers(3))
                for position, item in enumerate(generator.permutation(candidates)[:3]):
                    clicked = generator.random() < 0.3
                    bought = bool(clicked and generator.random() < 0.4)
                    row = {
                        "position": position,
                        "shopper_id": f"s{shopper}",
                        "timestamp": at,
                        "item_id": f"item-{item}",
                    }
                    row |= {"placement": "ad" if position == ad else "organic", "clicked": int(clicked)}
                    row |= {"converted": int(bought), "revenue": 10.0 * bought * generator.lognormal()}
                    row |= {"propensity": 1 / 8, "offer": offer, "age": 20.0 + shopper % 30}
                    row["copy"] = (None, "big sale today", "made by hand", "last ones left")[generator.integers(4)]
                    rows.append(key | row)
            day += generator.exponential(5.0)
    impressions = pd.DataFrame(rows).sort_values(["timestamp", "visit_id", "page", "position"], ignore_index=True)
    return impressions, items, pd.DataFrame(pages)


@pytest.fixture(scope="session")
def regulars(
    tmp_path_factory: pytest.TempPathFactory, journeys: Tables, fast: FitConfig, write_logs: Callable[..., Path]
) -> tuple[Path, FittedShoppers, dict[str, Any]]:
    """As ``fitted``, of the journeys: every head is there."""
    directory = tmp_path_factory.mktemp("journeys")
    logs = write_logs(directory / "logs", journeys)
    return directory, *fit(logs, directory / "shoppers", fast, lambda line: None)
