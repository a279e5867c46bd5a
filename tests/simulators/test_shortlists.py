"""Searches for the largest inner products."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hawker.simulators.shortlists import CHUNK, Shortlists, evenly, others


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_shop(items: int, seed: int = 0, width: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return vectors of items, and queries to learn from and to ask."""
    generator = seeded(seed)
    vectors = torch.randn(items, width, generator=generator)
    kinds = torch.randn(20, width, generator=generator)
    queries = kinds.repeat(60, 1) + 0.3 * torch.randn(1_200, width, generator=generator)
    return vectors, queries[:700], queries[700:]


def exact(vectors: torch.Tensor, queries: torch.Tensor, count: int) -> torch.Tensor:
    return (queries @ vectors.T).topk(count, 1).indices.sort(1).values


@pytest.mark.parametrize("items", [8, 9, 300])
def test_a_list_of_all_items_makes_a_search_exact(items):
    vectors, learned, asked = random_shop(items)
    lists = Shortlists(vectors, learned, count=8, length=items, seed=0)
    assert torch.equal(lists.search(asked), exact(vectors, asked, 8))
    assert torch.equal(lists.search(learned[:1]), exact(vectors, learned[:1], 8))


def test_short_lists_find_most_of_what_is_best():
    vectors, learned, asked = random_shop(20_000)
    found = Shortlists(vectors, learned, count=40, length=200, seed=0).search(asked)
    best = exact(vectors, asked, 40)
    assert all(len(row.unique()) == 40 for row in found)
    assert (found.diff() > 0).all(), "in the order of their numbers"
    shared = (found[:, :, None] == best[:, None]).any(1).float().mean()
    assert 0.9 < shared < 1.0


def test_queries_are_answered_alone_as_in_a_crowd():
    vectors, learned, _ = random_shop(500)
    asked = torch.randn(CHUNK["cpu"] + 3, 6, generator=seeded(1))
    lists = Shortlists(vectors, learned, count=5, length=25, seed=0)
    together = lists.search(asked)
    assert together.shape == (CHUNK["cpu"] + 3, 5)
    for i in (0, CHUNK["cpu"], CHUNK["cpu"] + 2):
        assert torch.equal(lists.search(asked[i : i + 1])[0], together[i])


def test_the_same_seed_makes_the_same_lists():
    vectors, learned, asked = random_shop(2_000)
    one, two = (Shortlists(vectors, learned, 10, 30, seed=3).search(asked) for _ in range(2))
    assert torch.equal(one, two)


def test_fewer_queries_than_kinds_and_a_single_item():
    vectors = torch.randn(1, 4, generator=seeded(0))
    lists = Shortlists(vectors, torch.ones(9, 4), count=1, length=5, seed=0)
    assert lists.search(torch.randn(6, 4, generator=seeded(1))).tolist() == [[0]] * 6


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 2**31))
def test_numbers_are_drawn_without_repeats(total, count, seed):
    count = min(count, total)
    drawn = evenly(30, count, total, seeded(seed))
    assert drawn.shape == (30, count)
    assert ((drawn >= 0) & (drawn < total)).all()
    assert all(len(row.unique()) == count for row in drawn)


def test_all_numbers_are_equally_likely():
    n, count, total = 40_000, 3, 11
    share = torch.bincount(evenly(n, count, total, seeded(0)).flatten(), minlength=total) / n
    expected = count / total
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / n) ** 0.5).all()


def test_ranks_among_those_not_taken():
    taken = torch.tensor([[0, 3, 4, 9]])
    free = np.setdiff1d(np.arange(12), taken[0])
    assert others(taken, torch.arange(8)[None])[0].tolist() == free.tolist()
    assert others(taken, torch.tensor([[7, 0, 2]])).tolist() == [[11, 1, 5]]
    assert others(taken[:, :0], torch.tensor([[5]])).tolist() == [[5]]
