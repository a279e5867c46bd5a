"""Where torch computes: the device, and how many threads."""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
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
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError("unknown device", where="device", got=name, expected="auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU that torch can use", where="device", got=name, remedy="use auto or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError("no such GPU", where="device", got=name, expected=f"below cuda:{torch.cuda.device_count()}")
    return device


def choose_threads() -> int:
    """Set torch's intra-op threads to ``OMP_NUM_THREADS``, or else to 1, and return the number.

    The tensors here are small: a second thread gains little alone, and beside another busy process the threads wait
    for each other and run many times slower.

    Raises:
        InputError: ``OMP_NUM_THREADS`` is not a positive number.
    """
    import torch

    wanted = (os.environ.get("OMP_NUM_THREADS") or "1").partition(",")[0]  # OpenMP takes a list, one for each level
    if not wanted.strip().isdecimal() or int(wanted) == 0:
        raise InputError("not a number of threads", where="OMP_NUM_THREADS", got=wanted, expected="1, 2, ...")
    threads = int(wanted)
    torch.set_num_threads(threads)
    return threads


def mixed_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrix products are in bfloat16 where that pays: on a GPU that has it.

    Weights, sums, losses and gradients of weights stay in float32, so that nothing has to be rescaled.
    """
    import torch

    fits = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fits)
