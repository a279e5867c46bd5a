"""A small shop with planted clicks, its log on disk, and shoppers fitted to it once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hawker.simulators.config import FitConfig
from hawker.simulators.fit import fit
from hawker.simulators.small import small_tables, small_world
from hawker.simulators.store import FittedShoppers

Tables = tuple[pd.DataFrame, pd.DataFrame]


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
    """A function that writes impressions and items into a directory and returns it."""

    def write(directory: Path, tables: Tables) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        for name, table in zip(("impressions", "items"), tables, strict=True):
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
