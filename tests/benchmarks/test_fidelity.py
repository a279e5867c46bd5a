from __future__ import annotations

import json
from pathlib import Path

import pytest

from hawker.app.fidelity_page import write_page
from hawker.benchmarks.fidelity import UNITS, FidelityConfig, bench_fidelity, finite
from hawker.benchmarks.fidelity_artefacts import cached_fit, cached_logs
from hawker.shop.errors import InputError
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.config import FitConfig


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FidelityConfig(shoppers=3), "fidelity.shoppers"),
        (FidelityConfig(seeds=()), "bad seeds"),
        (FidelityConfig(seeds=(-1,)), "bad seeds"),
        (FidelityConfig(variant="cascde"), "cascade"),
    ],
)
def test_a_bad_config_is_refused(config: FidelityConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench_fidelity(config, lambda _: None)


@pytest.mark.slow
def test_the_whole_benchmark_in_small(bazaar: BazaarWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path))
    small = FidelityConfig(
        seeds=(1,), shoppers=80, cohort=40, pages=20, followed=20, readers=20, fit=FitConfig(members=1, epochs=1)
    )
    told: list[str] = []
    report = bench_fidelity(small, told.append)
    json.dumps(report, allow_nan=False)
    expected = set(UNITS) - {name for name in UNITS if name.endswith("smollm2") or name.startswith("fit.")}
    found = {name for name in report["figures"] if not name.startswith("cdnow.")}
    assert found == {name for name in expected if not name.startswith("cdnow.")} - {"bazaar.spread_against_error"}
    assert "has not been fetched" in report["notes"][0]
    write_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<div class=charts>") == 4
    assert "http" not in page.replace("http://www.w3.org", "").split("<h2>")[0]
    # Another run finds what the first one made.
    told.clear()
    logs = cached_logs(bazaar, small.shoppers, small.days, 1, told.append)
    fit = cached_fit(logs, FitConfig(members=1, epochs=1, seed=1), told.append)
    assert sum("reused" in line for line in told) == 2
    assert fit.reused
    assert fit.peak_mib > 50


def test_numbers_that_json_cannot_say_become_none() -> None:
    assert finite({"a": [float("nan"), 1.0], "b": (float("inf"), "x", 2)}) == {"a": [None, 1.0], "b": [None, "x", 2]}
