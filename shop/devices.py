"""Where torch computes: the device, and how many threads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hawker.shop.errors import InputError

if TYPE_CHECKING:
    import torch


def resolve_device(name: str) -> torch.device:
    """Return the torch device for "auto" (the GPU where there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: No such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError("unknown device", where="device", got=name, expected="auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU that torch can use", where="device", got=name, remedy="use auto or cpu")
    return device


def choose_threads() -> int:
    """Set torch's intra-op threads to ``OMP_NUM_THREADS``, or else to 1, and return the number.

    The tensors here are small: a second thread gains little alone, and beside another busy process the threads wait
    for each other and run many times slower.
    """
    import torch

    threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or 1))
    torch.set_num_threads(threads)
    return threads
