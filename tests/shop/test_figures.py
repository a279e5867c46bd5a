import json
import math

import numpy as np
import pytest

from hawker.shop.figures import figure


@pytest.mark.parametrize(
    ("given", "kept"),
    [(0.25, 0.25), (0.0, 0.0), (3, 3.0), (np.float32(0.5), 0.5), (None, None), (math.nan, None), (-math.inf, None)],
)
def test_what_is_not_finite_is_none(given: float | None, kept: float | None):
    made = figure(given, given, given, np.int64(7), "clicks")
    assert made == {"value": kept, "low": kept, "high": kept, "n": 7, "unit": "clicks"}
    assert json.loads(json.dumps(made, allow_nan=False)) == made
