from __future__ import annotations

from pathlib import Path

import pytest

from hawker.benchmarks import fidelity_artefacts
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs, sources
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.config import FitConfig


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path))
    return tmp_path


def test_a_log_is_written_once(bazaar: BazaarWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    path = cached_logs(bazaar, 10, 20, 1, told.append)
    assert cached_logs(bazaar, 10, 20, 1, told.append) == path
    assert ["reused" in line for line in told] == [False, True]
    others = {cached_logs(bazaar, *size, told.append) for size in ((11, 20, 1), (10, 21, 1), (10, 20, 2))}
    assert len(others | {path}) == 4
    monkeypatch.setattr(fidelity_artefacts, "sources", lambda *_: "other sources")
    assert cached_logs(bazaar, 10, 20, 1, told.append) not in others | {path}


def test_a_damaged_log_is_written_anew(bazaar: BazaarWorld) -> None:
    told: list[str] = []
    path = cached_logs(bazaar, 10, 20, 1, told.append)
    digest = read_logs(path).digest
    (path / "impressions.parquet").write_bytes(b"torn")
    assert cached_logs(bazaar, 10, 20, 1, told.append) == path
    assert not any("reused" in line for line in told)
    assert read_logs(path).digest == digest


def test_a_fit_that_fails_leaves_nothing_and_says_why(bazaar: BazaarWorld, home: Path) -> None:
    logs = cached_logs(bazaar, 10, 20, 1, lambda _: None)
    with pytest.raises(InputError, match=r"the fit failed.*fit\.members"):
        cached_fit(logs, FitConfig(members=0), lambda _: None)
    assert [path.name for path in (home / "bench").iterdir()] == [logs.name]


def test_sources_tell_packages_apart() -> None:
    assert sources("shop") == sources("shop") != sources("simulators")
    assert len({sources("shop"), sources("simulators"), sources("policies"), sources("shop", "policies")}) == 4
