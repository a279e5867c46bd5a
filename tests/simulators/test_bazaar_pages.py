from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.logs import read_logs
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_pages import Pages, read_pages
from hawker.simulators.bazaar_parameters import load_bazaar
from hawker.simulators.diary import simulate, write_logs


class Keeper:
    name = "keeper"

    def propose(self, context: Context[Tensor], generator: torch.Generator) -> Decision[Tensor]:
        n = len(context.mask)
        slate = context.candidates[:, :8].clone()
        slate[:, 6:] = EMPTY
        copy = torch.randint(EMPTY, 188, (n, 8), generator=generator).masked_fill(slate == EMPTY, EMPTY)
        ad, offer = torch.randint(EMPTY, 6, (n,), generator=generator), torch.randint(4, (n,), generator=generator)
        return Decision(slate, torch.zeros(n), ad=ad, offer=offer, copy=copy)


@pytest.fixture(scope="module")
def world() -> BazaarWorld:
    return BazaarWorld(load_bazaar(), torch.device("cpu"))


@pytest.fixture(scope="module")
def path(world: BazaarWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "logs"
    write_logs(world, Keeper(), out, 40, 20, seed=9)
    return out


def test_a_log_gives_back_the_pages_it_was_written_from(world: BazaarWorld, path: Path):
    columns, features = simulate(world, Keeper(), 40, 20, torch.Generator().manual_seed(9))
    pages = read_pages(read_logs(path), world)
    first = int(columns["clock"].min()) // 86_400 * 86_400  # a log knows no day before its first
    for name in ("shopper", "page", "slate", "copy", "ad", "offer", "clicked", "converted"):
        assert np.array_equal(getattr(pages, name), columns[name].numpy()), name
    assert np.array_equal(pages.clock, columns["clock"].numpy() - first)
    assert np.array_equal(pages.features, features.numpy())


def test_ends_and_gaps():
    nothing = np.zeros((6, 1), np.int64)
    day = np.array([0, 0, 3, 7, 1, 4]) * 86_400 + 40_000
    pages = Pages(
        shopper=np.array([0, 0, 0, 0, 1, 1]),
        page=np.array([0, 1, 0, 0, 0, 0]),
        clock=day,
        slate=nothing,
        copy=nothing,
        ad=nothing[:, 0],
        offer=nothing[:, 0],
        clicked=nothing > 0,
        converted=nothing > 0,
        features=nothing[:2],
    )
    assert pages.last.tolist() == [False, True, True, True, True, True]
    assert np.array_equal(pages.days, [0, 3, 4, np.nan, 3, np.nan], equal_nan=True)


def test_a_log_of_another_world_is_refused(world: BazaarWorld, path: Path):
    logs = read_logs(path)
    assert logs.impressions is not None
    logs.impressions.loc[0, "copy"] = "something else"
    with pytest.raises(InputError, match="column copy: the world does not know this text; got 'something else'"):
        read_pages(logs, world)
    logs.impressions["shopper_id"] = None
    with pytest.raises(InputError, match="pages need impressions of known shoppers"):
        read_pages(logs, world)
