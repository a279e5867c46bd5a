import subprocess
import sys
from typing import Any

import pytest

from hawker.agents.writer_config import (
    DpoConfig,
    GrpoConfig,
    RewardModelConfig,
    RwrConfig,
    SftConfig,
    TuneConfig,
    check,
)
from hawker.shop.config import from_dict, to_dict
from hawker.shop.errors import InputError


@pytest.mark.parametrize("config", [SftConfig, DpoConfig, RewardModelConfig, RwrConfig, GrpoConfig])
def test_defaults_can_be_trained_with(config: type[TuneConfig]):
    assert from_dict(config, to_dict(config()), "here") == config()
    check(config())


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (SftConfig, {"steps": 0}, r"writer.steps: bad config; got 0, expected a number from 1"),
        (SftConfig, {"learning_rate": float("nan")}, "writer.learning_rate: bad config; got nan"),
        (SftConfig, {"prior": 0.0}, "writer.prior: bad config"),
        (DpoConfig, {"beta": -1.0}, "writer.beta: bad config"),
        (RewardModelConfig, {"rank": -1}, "writer.rank: bad config"),
        (GrpoConfig, {"batch": 10, "rows": 4}, "writer.batch: bad config; got 10, expected a multiple of rows, 4"),
        (
            GrpoConfig,
            {"batch": 8, "rows": 4, "group": 3},
            "got 8, expected a multiple of group, 3",
        ),
        (GrpoConfig, {"group": 1}, "writer.group: bad config; got 1"),
        (GrpoConfig, {"temperature": 0.0}, "writer.temperature: bad config"),
    ],
)
def test_refused(config: Any, values: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        check(config(**values))


def test_needs_no_torch():
    code = "import hawker.agents.writer_config, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
