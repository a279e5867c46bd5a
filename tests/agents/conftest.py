"""A run with fitted shoppers, and a training that takes a second."""

import shutil
from pathlib import Path

import pytest

from hawker.agents.config import TrainConfig
from hawker.shop.run import Run
from hawker.simulators.config import FitConfig
from hawker.simulators.fit import fit
from hawker.simulators.small import small_tables, small_world


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    """Four rollouts of 128 pages, with a checkpoint after the second."""
    return TrainConfig(steps=512, shoppers=64, pages=2, batch=64, epochs=2, hidden=16, checkpoint_every=2, device="cpu")


@pytest.fixture(scope="session")
def fitted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs and a run with shoppers fitted to them; not to be changed."""
    directory = tmp_path_factory.mktemp("fitted")
    impressions, items = small_tables()
    log = small_world(ctr=0.2).write_log(3000, impressions, seed=1)
    (directory / "logs").mkdir()
    log.to_parquet(directory / "logs/impressions.parquet", index=False)
    items.to_parquet(directory / "logs/items.parquet", index=False)
    config = FitConfig(members=2, epochs=6, batch=128, device="cpu")
    fit(directory / "logs", directory / "run/shoppers", config, lambda line: None)
    return directory


@pytest.fixture
def run(fitted_run: Path, tmp_path: Path) -> Run:
    """A run of one's own with fitted shoppers."""
    shutil.copytree(fitted_run / "run", tmp_path / "run")
    return Run(tmp_path / "run")
