from collections.abc import Iterator

import pytest
import torch

from hawker.shop.devices import choose_threads, resolve_device
from hawker.shop.errors import InputError


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.fixture
def _same_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("name", "gpus", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 1, "cuda"),
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, device: str):
    with_gpus(monkeypatch, gpus)
    assert resolve_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("gpu", 1, "device: unknown device; got 'gpu', expected auto, cpu, cuda or cuda:N"),
        ("", 0, "device: unknown device; got ''"),
        ("CUDA", 1, "unknown device"),
        ("cuda:", 1, "unknown device"),
        ("cuda:-1", 1, "unknown device"),
        ("cuda:0 ", 1, "unknown device"),
        ("mps", 0, "unknown device; got 'mps'"),
        ("meta", 0, "unknown device; got 'meta'"),
        ("cuda", 0, "device: no GPU that torch can use; got 'cuda'; use auto or cpu"),
        ("cuda:1", 0, "no GPU that torch can use; got 'cuda:1'"),
        ("cuda:2", 2, "device: no such GPU; got 'cuda:2', expected below cuda:2"),
    ],
)
def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, message: str):
    with_gpus(monkeypatch, gpus)
    with pytest.raises(InputError) as caught:
        resolve_device(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(("wanted", "threads"), [(None, 1), ("", 1), ("1", 1), ("2", 2), ("2,1", 2)])
@pytest.mark.usefixtures("_same_threads_afterwards")
def test_threads_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch, wanted: str | None, threads: int):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert choose_threads() == threads
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("wanted", ["two", "0", "-1", "1.5", ","])
def test_a_number_of_threads_that_is_none(monkeypatch: pytest.MonkeyPatch, wanted: str):
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    with pytest.raises(InputError, match="OMP_NUM_THREADS: not a number of threads; got '"):
        choose_threads()
