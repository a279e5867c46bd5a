"""First weights: from a generator of their own, zero where nothing is known yet."""

import pytest
import torch
from torch import nn

from hawker.simulators.layers import Gru, Linear, first_weights, tower


class Some(nn.Module):
    """One parameter of every kind."""

    def __init__(self, width: int = 200) -> None:
        super().__init__()
        self.taste = Linear(width, 300)
        self.item_effect = Linear(width, 1, bias=False)
        self.own_taste = nn.Embedding.from_pretrained(torch.zeros(7, 3), freeze=False)
        self.gru = Gru(width, 50, batch_first=True)
        self.base = nn.Parameter(torch.tensor(-3.0))
        self.level = nn.Parameter(torch.full((4,), -2.0))


def filled(seed: int = 0) -> Some:
    model = Some()
    first_weights(model, torch.Generator().manual_seed(seed))
    return model.requires_grad_(False)


@pytest.mark.usefixtures("nothing_global")
def test_weights_come_from_the_generator_alone():
    one, two, other = (filled(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["taste.weight"], other["taste.weight"])
    assert not torch.equal(one["gru.weight_ih_l0"], other["gru.weight_ih_l0"])


def test_effects_biases_and_what_an_item_owns_start_at_zero():
    model = filled()
    zero = (model.item_effect.weight, model.own_taste.weight, model.taste.bias, model.gru.bias_ih_l0)
    for parameter in zero:
        assert not parameter.any()
    assert float(model.base) == -3.0, "constants stay as their owner has set them"
    assert model.level.tolist() == [-2.0] * 4


def test_scales_follow_the_width_of_the_input():
    model = filled()
    assert float(model.taste.weight.std()) == pytest.approx(0.5 / 200**0.5, rel=0.05)
    assert float(model.gru.weight_ih_l0.std()) == pytest.approx(200**-0.5, rel=0.05)
    assert float(model.gru.weight_hh_l0.std()) == pytest.approx(50**-0.5, rel=0.05)


@pytest.mark.parametrize(("out", "hidden"), [(1, 8), (4, 8), (16, 32)])
def test_a_tower_of_two_has_one_hidden_layer(out, hidden):
    model = tower(5, out, 2)
    assert [tuple(p.shape) for p in model.parameters()] == [(hidden, 5), (hidden,), (out, hidden)]
    first_weights(model, torch.Generator().manual_seed(0))
    assert not model(torch.zeros(3, 5)).any(), "nobody in particular has no taste"


def test_a_tower_of_one_is_linear():
    model = tower(5, 4, 1)
    first_weights(model, torch.Generator().manual_seed(0))
    x, y = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x + 2 * y), model(x) + 2 * model(y))


@pytest.mark.usefixtures("nothing_global")
def test_layers_wait_for_their_weights():
    Linear(3, 4)
    Gru(3, 4)


def test_a_layer_without_inputs_is_possible():
    model = tower(0, 3, 1)
    first_weights(model, torch.Generator().manual_seed(0))
    assert model(torch.zeros(2, 0)).tolist() == [[0.0] * 3] * 2
