"""Choices, their entropies and the gradients that are written out, against autograd's."""

import torch

from hawker.policies.choices import RAREST, one_of_each, ranked


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_of_each_is_a_softmax():
    logits, picks = drawn(6, 5), torch.tensor([[0, 3], [1, 1], [4, 0], [2, 2], [3, 1], [0, 4]])
    log_probs, entropy = one_of_each(logits, picks)
    expected = logits.log_softmax(1)
    torch.testing.assert_close(log_probs, expected.gather(1, picks))
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(1))


def test_what_is_masked_has_no_part_in_it():
    logits = drawn(4, 5)
    masked = torch.cat([logits, torch.full((4, 2), -1e4, dtype=logits.dtype)], 1).requires_grad_()
    picks = torch.tensor([[0], [1], [2], [4]])
    log_probs, entropy = one_of_each(masked, picks)
    plain, plainly = one_of_each(logits, picks)
    torch.testing.assert_close(log_probs, plain)
    torch.testing.assert_close(entropy, plainly)
    (log_probs.sum() + entropy.sum()).backward()
    assert masked.grad[:, 5:].abs().max() < 1e3 * torch.tensor(RAREST).exp()
    assert float(one_of_each(masked.detach(), torch.full((4, 1), 5))[0].max()) < -9e3


def test_the_gradient_of_one_of_each():
    logits, picks = drawn(5, 6).requires_grad_(), torch.tensor([[0, 0, 3], [1, 2, 3], [5, 5, 5], [0, 1, 2], [4, 3, 0]])
    assert torch.autograd.gradcheck(lambda x: one_of_each(x, picks), logits)


def slates() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slates of up to three of five candidates, the last slot first: full, short, empty, with one not eligible."""
    picks = torch.tensor([[2, 0, 4], [0, 1, 3], [0, 0, 0], [0, 0, 2]])
    filled = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0], [0, 0, 1]]).double()
    left = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]).double()
    return left, picks, filled


def test_ranked_is_drawn_slot_by_slot():
    logits, (left, picks, filled) = drawn(4, 5), slates()
    log_probs, entropies = ranked(logits, left, picks, filled)
    for row in range(4):
        there, log_prob, entropy = left[row] > 0, 0.0, 0.0
        for pick, is_filled in zip(picks[row], filled[row], strict=True):  # the last slot first: one more each time
            if is_filled:
                there[pick] = True
                odds = logits[row].masked_fill(~there, -torch.inf).log_softmax(0)
                log_prob = log_prob + odds[pick]
                entropy = entropy - (odds[there].exp() * odds[there]).sum()
        torch.testing.assert_close(log_probs[row], torch.as_tensor(log_prob, dtype=logits.dtype))
        torch.testing.assert_close(entropies[row], torch.as_tensor(entropy, dtype=logits.dtype))


def test_the_gradient_of_ranked():
    logits, (left, picks, filled) = drawn(4, 5).requires_grad_(), slates()
    assert torch.autograd.gradcheck(lambda x: ranked(x, left, picks, filled), logits)
