"""What holds for every test."""

import os

# One thread a process: on two cores the thread pools of torch and OpenBLAS fight the other workers for them, and sums
# taken in one order are the same on every machine. Set before anything imports numpy or torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings
from torch.utils._python_dispatch import TorchDispatchMode

from hawker.agents import page_export
from hawker.agents.config import WHOLE_PAGES
from hawker.agents.page_world import read
from hawker.agents.writer_data import item_brief, tier_discounts
from hawker.benchmarks.bazaar import logging_strategy
from hawker.policies.copy_bank import Candidate, ChoiceConfig, build_bank
from hawker.policies.guardrails import Guardrails
from hawker.policies.page import PageLayout
from hawker.policies.page_actor import PageActor, PageStrategy
from hawker.policies.small_writer import small_model
from hawker.shop.artefacts import write_directory
from hawker.shop.config import to_dict
from hawker.shop.logs import read_logs
from hawker.shop.run import Run
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.config import FitConfig
from hawker.simulators.diary import write_logs
from hawker.simulators.fit import fit
from hawker.simulators.search_bazaar import open_bazaar
from hawker.simulators.store import load_shoppers

# Derandomised, so that a red run can be repeated; no deadline, because the machine may be busy.
settings.register_profile("house", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("house")


class _Watch(TorchDispatchMode):
    """Fails where the host asks the device what is in the data."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.default")
        assert not any(word in name for word in waits), f"a step waits for the device: {name}"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def never_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager in which nothing may move data to the host or wait for what is in it."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a step moves data to the host")

    @contextmanager
    def watched() -> Iterator[None]:
        with monkeypatch.context() as patched, _Watch():
            for name in ("item", "cpu", "numpy", "tolist", "nonzero"):
                patched.setattr(torch.Tensor, name, refuse)
            for name in ("bool", "int", "float", "array", "iter"):
                patched.setattr(torch.Tensor, f"__{name}__", refuse)
            yield

    return watched


@pytest.fixture(scope="session")
def remembering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``logs`` of the bazaar, with ads, offers and copy, and ``run`` with shoppers fitted to them; not to change."""
    directory = tmp_path_factory.mktemp("remembering")
    world = BazaarWorld(load_bazaar(None), torch.device("cpu"))
    write_logs(world, logging_strategy(world, "popularity"), directory / "logs", 40, 21, seed=1)
    _fit(directory)
    return directory


@pytest.fixture(scope="session")
def remembering_items(remembering: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``remembering``, of a log that shows items alone and knows no purchases."""
    directory = tmp_path_factory.mktemp("items")
    (directory / "logs").mkdir()
    rows = pd.read_parquet(remembering / "logs" / "impressions.parquet")
    rows = rows.drop(columns=["copy", "offer", "converted", "revenue"], errors="ignore").assign(placement="organic")
    rows.to_parquet(directory / "logs" / "impressions.parquet", index=False)
    shutil.copy(remembering / "logs" / "items.parquet", directory / "logs")
    _fit(directory)
    return directory


@pytest.fixture(scope="session")
def served_pages(remembering: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run`` with a page strategy of random weights, its ``bundle``, the export's ``report.json``; not to change."""
    return _served(remembering, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``remembering``, of the bazaar with a search box."""
    directory = tmp_path_factory.mktemp("searching")
    world = open_bazaar("search", torch.device("cpu"))
    write_logs(world, logging_strategy(world, "popularity"), directory / "logs", 80, 14, seed=1)
    _fit(directory, members=1)
    return directory


@pytest.fixture(scope="session")
def served_search(searching: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``served_pages``, of ``searching``."""
    return _served(searching, tmp_path_factory.mktemp("served-search"))


def _served(fitted: Path, directory: Path) -> Path:
    shutil.copytree(fitted / "run", directory / "run")
    config = replace(WHOLE_PAGES, ad_gap=3)
    shoppers = load_shoppers(directory / "run" / "shoppers", torch.device("cpu"))
    world = read(shoppers, shoppers.world("train"), config.reward)
    lines = shoppers.lines
    assert lines is not None
    layout, generator = PageLayout(world.size, True, True, world.offers, len(lines)), torch.Generator().manual_seed(0)
    actor = PageActor(layout, world.builder, 16, generator, world.bids.numpy(), lines.scaled)
    actor.begin_greedy(1.0)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    trained_on = {"shoppers": shoppers.digest, "logs": shoppers.logs_digest, "config": to_dict(config)}
    with write_directory(directory / "run" / "policy", "policy") as scratch:
        PageStrategy(actor, world.builder, world.lines, trained_on).save(scratch)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page_export, "CHECKED_PAGES", 500)
        patched.setattr(page_export, "LIVES", 24)
        report = page_export.export_run(Run(directory / "run"), directory / "bundle")
    (directory / "report.json").write_text(json.dumps(report, allow_nan=False))
    return directory


@pytest.fixture(scope="session")
def served_bank(remembering: Path, served_pages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``served_pages``, of a ``run`` with a copy bank: lines for 12 items, 6 of them also for two audiences."""
    directory = tmp_path_factory.mktemp("bank")
    shutil.copytree(served_pages / "run", directory / "run")
    logs = read_logs(remembering / "logs")
    discounts = sorted(set(tier_discounts(logs.impressions, logs.items).values()))
    said = ("A {title} for slow days", "Made to last", "Good things for the home")
    candidates = [
        Candidate(item["item_id"], item_brief(item, "headline", audience, discount), line.format(**item))
        for i, item in enumerate(logs.items.head(12).to_dict("records"))
        for audience in (("", "new", "returning") if i % 2 else ("",))
        for discount in discounts
        for line in said
    ]

    def scorer(item_ids: list[str], audiences: list[str], discounts: list[float], lines: list[str]) -> np.ndarray:
        worth = np.array([0.002 * (len(line) % 7) for line in lines])
        return np.stack([worth, 1.3 * worth])

    run, config = Run(directory / "run"), ChoiceConfig(temperature=0.01, floor=0.2)
    build_bank(candidates, scorer, Guardrails.load(), "digest of a writer", config).save(run.bank)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page_export, "CHECKED_PAGES", 200)
        patched.setattr(page_export, "LIVES", 16)
        report = page_export.export_run(run, directory / "bundle")
    (directory / "report.json").write_text(json.dumps(report, allow_nan=False))
    return directory


@pytest.fixture(scope="session")
def served_live(served_bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``served_bank``, with a tiny writer of random weights, which has a voice; not to change."""
    directory = tmp_path_factory.mktemp("live")
    shutil.copytree(served_bank / "run", directory / "run")
    run, texts = Run(directory / "run"), ["A quiet pot for slow mornings", "Warm wool for cold days"]
    writer = small_model(run.path / "writer" / "sft", texts)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page_export, "CHECKED_PAGES", 200)
        patched.setattr(page_export, "LIVES", 16)
        report = page_export.export_run(run, directory / "bundle", None, writer, ("Made by hand, for every day",))
    (directory / "report.json").write_text(json.dumps(report, allow_nan=False))
    return directory


def _fit(directory: Path, members: int = 2) -> None:
    config = FitConfig(members=members, epochs=1, device="cpu")
    fit(directory / "logs", directory / "run" / "shoppers", config, lambda line: None)


@pytest.fixture
def nothing_global() -> Iterator[None]:
    """Fail if the test moves a global random generator."""

    def state() -> str:
        legacy = np.random.get_state()  # noqa: NPY002  # to see that nobody uses it
        return repr((torch.random.get_rng_state().tolist(), legacy[1].tolist(), legacy[2], random.getstate()))

    before = state()
    yield
    assert state() == before
