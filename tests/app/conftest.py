"""A small shop that has gone the whole way once: logs, shoppers, policy, checkpoint, bundle."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hawker.app.cli import main
from hawker.shop.artefacts import sha256
from hawker.simulators.small import small_tables

FIT = "members: 2\nepochs: 3\n"
TRAIN = "steps: 2048\nshoppers: 128\nbatch: 256\ncheckpoint_every: 1\n"


def _tables(n: int = 500, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    impressions, items = small_tables(n_rows=n, seed=seed)
    clicked = np.random.default_rng(seed).random(n) < 0.15
    return impressions.assign(clicked=clicked.astype(np.int8)), items


def _write(directory: Path, suffix: str = "parquet", **tables: pd.DataFrame) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        if suffix == "csv":
            table.to_csv(directory / f"{name}.csv", index=False)
        else:
            table.to_parquet(directory / f"{name}.parquet", index=False)
    return directory


@pytest.fixture(scope="session")
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """1,500 impressions of the uniform strategy, 15% of them clicked, and the items; not to be changed in place."""
    return _tables(1_500)


@pytest.fixture(scope="session")
def write_tables():
    """A function of (directory, suffix, tables by name) that writes them there."""
    return _write


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tables: tuple[pd.DataFrame, pd.DataFrame]) -> Path:
    """``logs``, ``run``, ``bundle``, ``context.json`` and the configs, made by the commands; not to be changed."""
    home = tmp_path_factory.mktemp("finished")
    impressions, items = tables
    _write(home / "logs", impressions=impressions, items=items)
    (home / "fit.yaml").write_text(FIT)
    (home / "train.yaml").write_text(TRAIN)
    (home / "context.json").write_text('{"timestamp": "2026-01-01T12:00:00Z", "shopper": {"age": 30}}\n')
    for words in (
        ["fit", home / "logs", "--out", home / "run" / "shoppers", "--config", home / "fit.yaml"],
        ["train", home / "run", "--config", home / "train.yaml"],
        ["export", home / "run", home / "bundle"],
    ):
        assert main([str(word) for word in words]) == 0
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Path:
    """A copy of ``finished`` that may be broken; its run still names the logs of ``finished``."""
    copy = tmp_path / "home"
    shutil.copytree(finished, copy)
    return copy


def _tree(directory: Path) -> dict[str, str]:
    """Every file and folder, hidden ones too, with the SHA-256 of what it holds."""
    return {
        str(path.relative_to(directory)): sha256(path) if path.is_file() else "folder"
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture
def refused(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[Sequence[object]], str]:
    """A function of a command's words that runs it and returns its line; it must fail as bad input is to fail.

    That is with exit code 2, one line on standard error, and not a byte changed in ``home``: nothing half-written, and
    what was there before intact. ``home`` is called HOME in the line that is returned.
    """

    def run(words: Sequence[object]) -> str:
        before = _tree(home)
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        line = capsys.readouterr().err
        assert _tree(home) == before
        assert line.startswith("hawker: ")
        assert line.count("\n") == 1
        assert line.endswith("\n")
        assert "Traceback" not in line
        return line.removeprefix("hawker: ").removesuffix("\n").replace(str(home), "HOME")

    return run
