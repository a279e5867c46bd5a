"""Scores of candidates and their gradient, against the definition."""

import torch

from hawker.policies.pointing import candidate_scores


def drawn(n: int, items: int, choices: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, 3), (items, 3), (items,))
    query, keys, bias = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    candidates = torch.rand(n, items, generator=generator).topk(choices, 1).indices
    candidates[0, 1] = candidates[0, 0]  # a candidate may stand there twice
    return query, keys, bias, candidates


def test_scores_are_those_of_the_candidates():
    query, keys, bias, candidates = drawn(6, 9, 4)
    by_hand = [[query[b] @ keys[i] + bias[i] for i in row] for b, row in enumerate(candidates.tolist())]
    torch.testing.assert_close(candidate_scores(query, keys, bias, candidates), torch.tensor(by_hand))


def test_the_gradient_is_that_of_the_scores():
    query, keys, bias, candidates = drawn(5, 7, 3)
    leaves = [part.requires_grad_() for part in (query, keys, bias)]
    assert torch.autograd.gradcheck(lambda *parts: candidate_scores(*parts, candidates), leaves)


def test_the_gradient_is_that_of_gathering():
    query, keys, bias, candidates = drawn(40, 60, 20, torch.float32)
    leaves = [part.requires_grad_() for part in (query, keys, bias)]
    weights = torch.randn(40, 20, generator=torch.Generator().manual_seed(1))
    plain = torch.addmm(bias, query, keys.T).gather(1, candidates)
    expected = torch.autograd.grad((plain * weights).sum(), leaves)
    found = torch.autograd.grad((candidate_scores(*leaves, candidates) * weights).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
