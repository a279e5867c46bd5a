import math

import pytest

from hawker.policies.copy_choice import ChoiceConfig
from hawker.shop.errors import InputError


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"temperature": 0.0}, "copy bank: bad temperature; got 0.0, expected a finite number above 0"),
        ({"temperature": math.inf}, "copy bank: bad temperature; got inf"),
        ({"floor": 1.5}, "copy bank: bad floor; got 1.5, expected a share, 0..1"),
        ({"floor": math.nan}, "copy bank: bad floor"),
        ({"caution": -0.1}, "copy bank: bad caution; got -0.1, expected a finite number of at least 0"),
        ({"caution": math.nan}, "copy bank: bad caution"),
    ],
)
def test_what_gives_no_distribution_is_refused(told: dict[str, float], message: str):
    with pytest.raises(InputError) as caught:
        ChoiceConfig(**told)
    assert message in str(caught.value)


@pytest.mark.parametrize("told", [{"floor": 0.0}, {"floor": 1.0}, {"caution": 0.0}, {"temperature": 1e-9}])
def test_bounds_belong_to_what_is_taken(told: dict[str, float]):
    assert ChoiceConfig(**told) != ChoiceConfig()
