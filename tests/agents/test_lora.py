"""Layers with an adapter say and learn what peft's do."""

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hawker.agents.lora import fuse_adapters


def adapted(numbers: torch.dtype = torch.float32, **options: Any) -> Any:
    """Two layers, the first with a bias, with adapters that do something."""
    generator = torch.Generator().manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft misses the config of a transformers model
        model = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=["0", "2"], **options))
    for name, weights in model.named_parameters():
        weights.data = torch.randn(weights.shape, generator=generator)
        if "lora_" not in name:
            weights.data = weights.data.to(numbers)
    return model


def answered(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What a model says, and the gradients of what it read and learns."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    said = model(x)
    weights = torch.randn(said.shape, generator=torch.Generator().manual_seed(2))
    (said * weights).sum().backward()
    return [said.detach(), x.grad, *(each.grad for each in model.parameters() if each.requires_grad)]


READ = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(1))


def test_it_says_and_learns_what_pefts_does():
    model = adapted()
    theirs = answered(model, READ)
    assert fuse_adapters(model) == 2
    ours = answered(model, READ)
    assert len(ours) == 6
    torch.testing.assert_close(ours, theirs)


def test_in_bfloat16_what_learns_stays_float32():
    exact, low = answered(adapted(), READ), adapted(torch.bfloat16)
    fuse_adapters(low)
    ours = answered(low, READ)
    assert ours[0].dtype == torch.bfloat16
    assert {each.dtype for each in ours[1:]} == {torch.float32}
    for one, other in zip(exact, ours, strict=True):
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten().float(), dim=0) > 0.999


def test_without_its_adapter_a_layer_is_what_it_was():
    model = adapted()
    fuse_adapters(model)
    with_it = model(READ)
    with model.disable_adapter():
        plain = model(READ)
        assert torch.equal(plain, model.get_base_model()(READ))
    assert not torch.allclose(plain, with_it)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(READ), with_it)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_what_peft_treats_otherwise_is_left_alone(options: dict[str, Any]):
    assert fuse_adapters(adapted(**options)) == 0


def test_a_second_adapter_is_left_to_peft():
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["0"]))
    assert fuse_adapters(model) == 1
