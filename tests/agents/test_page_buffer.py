"""Rollouts: what is luck, in what unit rewards are, and what pages are worth."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from hawker.agents import page_buffer
from hawker.agents.page_buffer import ReturnScale, TensorRolloutBuffer, _luck


def test_values_are_estimated_of_every_page_and_of_those_cut_off(monkeypatch):
    """By a critic that sums what it sees; the last chunk is smaller, and rows of nobody cut off are not looked at."""
    monkeypatch.setattr(page_buffer, "CHUNK", 4)
    seen, cut_off = torch.arange(18.0).reshape(3, 3, 2), torch.eye(3, dtype=torch.bool)
    space = spaces.Dict({"shopper": spaces.Box(-1, 1, (2,))})
    buffer = TensorRolloutBuffer(
        3, space, spaces.MultiDiscrete([2]), n_envs=3, seed=0, normalise=True, slot_by_slot=False
    )
    asked = []

    def critic(observation):
        asked.append(len(observation["shopper"]))
        total = observation["shopper"].sum(1)
        return torch.stack([total, -total], 1)

    for turn in range(2):
        buffer.reset()
        for page in range(3):
            after = torch.where(cut_off[page, :, None], 100.0 + turn + seen[page], torch.nan)
            buffer.put({"shopper": turn + seen[page]}, **{"cut_off": cut_off[page], "next.shopper": after})
        buffer.estimate(critic)
        total = (turn + seen).sum(2)
        assert torch.equal(buffer._kept["values"], torch.stack([total, -total], 2))
        expected = torch.where(cut_off, (100.0 + turn + seen).sum(2), 0.0)
        assert torch.equal(buffer._kept["bootstraps"], expected)
    assert asked == [4, 4, 1, 3] * 2


def test_luck_by_hand():
    chances = torch.tensor([[[1.0], [0.0], [-1.0]]])
    luck = _luck(torch.tensor([[1.0, 2.0, 5.0]]), chances)  # slope (1 - 5) / 2
    torch.testing.assert_close(luck, torch.tensor([[-2.0, 0.0, 2.0]]), atol=1e-5, rtol=0)
    assert not _luck(torch.tensor([[1.0, 2.0, 5.0]]), torch.zeros(1, 3, 4)).any()


def test_without_luck_pages_are_told_apart_as_before_and_more_surely():
    """Half the pages are worth 0.2 more and make leaving 10 points rarer; who leaves loses 3."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(300):
        better = torch.rand(16, 16, generator=generator) < 0.5
        probability = 0.5 - 0.1 * better
        left = (torch.rand(16, 16, generator=generator) < probability).float()
        delta = 0.2 * better - 3 * left + 0.1 * torch.randn(16, 16, generator=generator)
        rest = delta - _luck(delta, (left - probability)[:, :, None])
        found.append([float(part[better].mean() - part[~better].mean()) for part in (delta, rest)])
    (before, after), spread = np.mean(found, 0), np.std(found, 0)
    planted = 0.2 + 3 * 0.1
    assert before == pytest.approx(planted, abs=4 * spread[0] / 300**0.5)
    assert after == pytest.approx(planted, abs=4 * spread[1] / 300**0.5)
    assert spread[1] < 0.1 * spread[0]


def test_returns_unit_is_the_root_mean_square_of_all_returns():
    scale, rng = ReturnScale(3), np.random.default_rng(0)
    carried, squares = np.zeros(3), []
    for _ in range(4):
        rewards, discounts, ended = rng.normal(size=(5, 3)), rng.random((5, 3)), rng.random((5, 3)) < 0.3
        for t in range(5):
            carried = carried + rewards[t]
            squares.extend(carried**2)
            carried = np.where(ended[t], 0.0, carried * discounts[t])
        scale.update(torch.tensor(rewards).float(), torch.tensor(discounts).float(), torch.tensor(ended))
        assert float(scale.unit) == pytest.approx(np.sqrt(np.mean(squares)), rel=1e-5)
