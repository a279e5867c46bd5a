"""LoRA on a CPU by matrix products alone: y = x W' + s (x A') B', added up as it is computed.

peft computes the adapter's part apart, scales it and adds it: three more passes over what a layer says and as many on
the way back, which with small adapters take as long as the layer itself does.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def fuse_adapters(model: Any) -> int:
    """Let layers with a LoRA adapter of peft compute so; return how many do.

    Those that peft treats otherwise are left as they are: with dropout, biases of their own, several adapters or
    variants of LoRA.

    Args:
        model: A model to train, with adapters or without.
    """
    from peft.tuners.lora import Linear

    some = [layer for layer in model.modules() if type(layer) is Linear and _is_plain(layer)]
    for layer in some:
        layer.__dict__["forward"] = types.MethodType(_forward, layer)
    return len(some)


def _is_plain(layer: Any) -> bool:
    base = layer.base_layer
    return (
        type(base) is nn.Linear
        and not any(each.requires_grad for each in base.parameters())
        and len(layer.active_adapters) == len(layer.lora_A) == 1
        and not layer.lora_variant
        and all(isinstance(each, nn.Identity) for each in layer.lora_dropout.values())
        and all(each.bias is None for each in layer.lora_B.values())
    )


def _forward(layer: Any, x: Tensor) -> Tensor:
    said: Tensor
    if layer.disable_adapters or layer.merged:
        said = layer.base_layer(x)
        return said
    (name,) = layer.active_adapters
    base, small = layer.base_layer, (layer.lora_A[name].weight, layer.lora_B[name].weight)
    down, up = (each.to(base.weight.dtype) for each in small)
    flat = x.to(base.weight.dtype).reshape(-1, x.shape[-1])
    apply: Any = _Adapted.apply  # which is untyped
    said = apply(flat, base.weight, base.bias, down, up * layer.scaling[name])
    return said.view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    """A linear layer that does not learn, and on it an adapter that does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        """Return x W' + b + (x A') B' for x (n, in), W (out, in), A (rank, in), B (out, rank)."""
        low = x @ down.T
        said = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
        ctx.save_for_backward(x, low, weight, down, up)
        return said.addmm_(low, up.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, Tensor, Tensor]:
        x, low, weight, down, up = ctx.saved_tensors
        below = slope @ up
        return (slope @ weight).addmm_(below, down), None, None, below.T @ x, slope.T @ low
