import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hawker.policies.slate import SlateActor
from hawker.policies.trained import POLICY, WEIGHTS, TrainedStrategy
from hawker.shop.artefacts import write_directory
from hawker.shop.context import ContextBuilder
from hawker.shop.errors import InputError
from hawker.simulators.small import small_tables

CPU = torch.device("cpu")
IMPRESSIONS, ITEMS = small_tables(n_items=6, n_rows=40)
BUILDER = ContextBuilder.fit(IMPRESSIONS, ITEMS)
TRAINED_ON = {"logs": "a" * 64, "config": {"seed": 3, "reward": {"click": 1.0}}}


@pytest.fixture
def strategy() -> TrainedStrategy:
    generator = torch.Generator().manual_seed(3)
    actor = SlateActor(BUILDER, 3, 8, generator)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return TrainedStrategy(actor, BUILDER, TRAINED_ON)


@pytest.fixture
def saved(strategy: TrainedStrategy, tmp_path: Path) -> Path:
    """The directory of the strategy."""
    with write_directory(tmp_path / "policy", "policy") as scratch:
        strategy.save(scratch)
    return tmp_path / "policy"


def test_a_strategy_comes_back_as_it_was(strategy: TrainedStrategy, saved: Path):
    again = TrainedStrategy.load(saved, CPU)
    assert again.trained_on == TRAINED_ON
    assert (again.name, again.size, again.actor.hidden) == ("trained", 3, 8)
    context = again.builder.from_impressions(IMPRESSIONS).map(lambda array: torch.from_numpy(np.array(array)))
    one, other = (s.propose(context, torch.Generator().manual_seed(0)) for s in (strategy, again))
    assert torch.equal(one.slate, other.slate)
    assert torch.equal(one.log_prob, other.log_prob)


def test_what_is_saved_twice_is_the_same_file(strategy: TrainedStrategy, saved: Path, tmp_path: Path):
    with write_directory(tmp_path / "again", "policy") as scratch:
        TrainedStrategy.load(saved, CPU).save(scratch)
    for name in (POLICY, WEIGHTS, "checksums.json"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_a_strategy_does_not_learn(strategy: TrainedStrategy):
    context = BUILDER.from_impressions(IMPRESSIONS).map(lambda array: torch.from_numpy(np.array(array)))
    assert not strategy.propose(context, torch.Generator()).log_prob.requires_grad
    assert not strategy.actor.training


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [POLICY, WEIGHTS])
def test_a_changed_or_missing_file(saved: Path, name: str):
    flip_a_bit(saved / name)
    with pytest.raises(InputError, match=f"{name}: the file was changed after it was written; .*write the policy anew"):
        TrainedStrategy.load(saved, CPU)
    (saved / name).unlink()
    with pytest.raises(InputError, match=f"{name}: a file is missing; write the policy anew"):
        TrainedStrategy.load(saved, CPU)


def test_no_policy_at_all(tmp_path: Path):
    with pytest.raises(InputError, match="nothing: no policy here"):
        TrainedStrategy.load(tmp_path / "nothing", CPU)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"not a directory of policy; expected a checksums\.json in it"):
        TrainedStrategy.load(tmp_path, CPU)


def edited(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        values = json.loads((directory / POLICY).read_text())
        (directory / POLICY).write_text(json.dumps(change(values)))

    return edit


def without_a_weight(directory: Path) -> None:
    weights = load_file(directory / WEIGHTS)
    del weights["own_key"]
    save_file(weights, directory / WEIGHTS)


def garbage(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")


def emptied(*names: str) -> Callable[[Path], None]:
    def remove(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return remove


OTHER_VERSION = "policy: not a policy of this version"


@pytest.mark.parametrize(
    ("make_foreign", "message"),
    [
        (emptied(POLICY, WEIGHTS), f"policy/{POLICY}: no such file"),
        (emptied(WEIGHTS), OTHER_VERSION),
        (garbage, OTHER_VERSION),
        (without_a_weight, OTHER_VERSION),
        (edited(lambda values: []), OTHER_VERSION),
        (edited(lambda values: values | {"actor": {"size": 3}}), OTHER_VERSION),
        (edited(lambda values: values | {"actor": {"size": 3, "hidden": 9}}), OTHER_VERSION),
        (edited(lambda values: values | {"actor": {"size": "3", "hidden": "8"}}), OTHER_VERSION),
        (edited(lambda values: {name: values[name] for name in ("actor", "builder")}), OTHER_VERSION),
        (edited(lambda values: values | {"builder": []}), f"{POLICY}: not an object"),
        (edited(lambda values: values | {"builder": {}}), f"{POLICY}: not a feature schema"),
        (
            edited(lambda v: v | {"builder": v["builder"] | {"catalog": v["builder"]["catalog"] | {"features": {}}}}),
            f"{POLICY}: not a feature schema",
        ),
        (
            edited(lambda v: v | {"builder": v["builder"] | {"catalog": v["builder"]["catalog"] | {"item_ids": []}}}),
            f"{POLICY}: item vectors do not fit the catalog",
        ),
    ],
)
def test_whole_artefacts_that_are_no_policy(saved: Path, make_foreign: Callable[[Path], None], message: str):
    """Their checksums are right: another version wrote them, or they are another kind of artefact."""
    foreign = saved.parent / "foreign" / "policy"
    with write_directory(foreign, "policy") as scratch:
        for name in (POLICY, WEIGHTS):
            (scratch / name).write_bytes((saved / name).read_bytes())
        make_foreign(scratch)
    with pytest.raises(InputError) as caught:
        TrainedStrategy.load(foreign, CPU)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
