import pytest
import torch

from hawker.simulators.frozen_pages import Came, Carried, Page, readable_counts
from hawker.simulators.memory import clock_of


def page(n: int, **parts) -> Page:
    nothing = dict.fromkeys(("pair", "affinity", "said", "offer", "tier", "ad"))
    at = torch.tensor([[3, 0, 5]]).expand(n, 3)
    return Page(torch.zeros(n, 2), at, (at > 0).float(), **nothing | parts)


def test_counts_are_read_as_memories_read_them(regulars):
    memory = regulars[1].ensembles["train"].models[0].memory
    counts = torch.tensor([[0.0, 0.0, 0.0], [2.0, 5.5, 9.0]])
    carried = torch.cat([torch.ones(2, memory.hidden - 3), counts], 1)
    totals, share = readable_counts(counts)
    readable = memory.readable(carried)
    torch.testing.assert_close(totals, readable[:, -3:])
    torch.testing.assert_close(share[:, 0], readable[:, memory.width + memory.surprises])


def test_what_came_of_a_page_by_hand():
    tier, ad = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    shown = page(1, tier=tier, ad=ad)
    gap, number = torch.tensor([2.0]), torch.tensor([0.0])
    carried = Carried.read(torch.zeros(1, 4), torch.tensor([[1.0, 3.0, 4.0]]), gap, number)
    clicked, bought, revenue = torch.tensor([[1.0, 0, 1]]), torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.0, 0, 9]])
    came = Came.read(shown, carried, clicked, bought, revenue, 2)
    filled, earned = 2 / 8, torch.tensor(10.0).log() / 4
    expected = [filled, 2.0, 1.0, earned, 1.0, 1.0, 0.0, filled, 0.0, 2.0]
    torch.testing.assert_close(came.sums, torch.tensor([expected]))
    assert came.counts.tolist() == [[2.0, 5.0, 5.0]], "a visit more, two days more, a page more"
    assert torch.equal(carried.clock, clock_of(gap, number))


@pytest.mark.parametrize("tiers", [1, 3])
def test_a_page_without_an_offer_has_the_first_tier(tiers):
    carried = Carried.read(torch.zeros(1, 4), torch.zeros(1, 3), torch.zeros(1), torch.ones(1))
    came = Came.read(page(1), carried, torch.ones(1, 3), torch.zeros(1, 3), None, tiers)
    assert came.sums[0, 6:].tolist() == [2 / 8, *[0.0] * (tiers - 1), 3.0, *[0.0] * (tiers - 1)]


def test_some_shoppers_are_taken_from_every_part():
    pages = page(6, tier=torch.arange(6.0)[:, None])
    for some in (slice(1, None, 2), torch.tensor([1, 3, 5])):
        taken = pages.of(some)
        assert taken.tier.flatten().tolist() == [1.0, 3.0, 5.0]
        assert len(taken.at) == len(taken.scaled) == 3
        assert taken.ad is None
