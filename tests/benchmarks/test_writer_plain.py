"""trl by itself, with a tiny model."""

from pathlib import Path

import pytest

from hawker.agents.writer_config import GrpoConfig
from hawker.agents.writer_data import Assignment
from hawker.benchmarks.writer_plain import plain_rate
from hawker.policies.briefs import Brief
from hawker.policies.small_writer import small_model


@pytest.mark.slow
def test_tokens_are_counted(tmp_path: Path):
    model = small_model(tmp_path / "model", ["Made by hand", "Rustic teapot"])
    config = GrpoConfig(steps=2, batch=4, rows=4, group=4, tokens=8, device="cpu")
    assert plain_rate(str(model), [Assignment("i0001", Brief("headline", title="Rustic teapot"))], config) > 0
