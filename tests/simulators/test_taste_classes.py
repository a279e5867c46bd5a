"""Classes of taste: what they make of a page, and what they believe after it."""

import itertools

import pytest
import torch

from hawker.shop.decision import Decision
from hawker.shop.reward import RewardSpec
from hawker.simulators.taste_classes import CLASSES, FADES, TasteClasses


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def tastes(regulars) -> TasteClasses:
    found = regulars[1].ensembles["train"].tastes
    assert found is not None
    return found


def pages(tastes: TasteClasses, n: int, seed: int) -> Decision[torch.Tensor]:
    generator, items = seeded(seed), len(tastes.item_vectors)
    slate = torch.rand(n, items, generator=generator).topk(3, 1).indices
    slate[0, 2] = -1
    return Decision(
        slate,
        torch.zeros(n),
        ad=torch.randint(-1, 3, (n,), generator=generator),
        offer=torch.randint(0, 3, (n,), generator=generator),
        copy=torch.randint(-1, 3, (n, 3), generator=generator),
    )


def features(tastes: TasteClasses, n: int) -> torch.Tensor:
    return torch.randn(n, len(tastes.shopper_centre), generator=seeded(5))


def by_hand(tastes: TasteClasses, scaled, decision, seen, who: int, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
    """P(click) at a position and P(purchase | click) in each class, slot by slot, from the weights themselves."""
    item = int(decision.slate[who, slot])
    vector, kinds = tastes.item_vectors[item], tastes.kinds[item].tolist()
    around = torch.zeros(())
    for other in range(decision.slate.shape[1]):
        theirs = tastes.kinds[decision.slate[who, other]].tolist()
        for block, (mine, their) in enumerate(zip(kinds, theirs, strict=True)):
            if other != slot and decision.slate[who, other] >= 0 and mine == their != tastes.values - 1:
                around = around + tastes.kinds_around[int(other > slot), block]
    for speed in range(len(FADES)):
        for block, kind in enumerate(kinds):
            around = around + tastes.kinds_seen[speed, block] * seen[who, speed, kind]
    odds = []
    for head in (tastes.click, tastes.purchase):
        value = head.base + head.level + head.item(vector) + head.own[item] + head.item_class(vector)
        value = value + head.shopper(scaled[who])
        line, offer = int(decision.copy[who, slot]), int(decision.offer[who])
        if line >= 0:
            value = value + head.line(tastes.line_vectors[line]) + head.line_class(tastes.line_vectors[line])
        if offer:
            value = value + head.offer[offer - 1]
        odds.append(value + head.ad * (decision.ad[who] == slot))
    click = odds[0] + around
    look = (tastes.position[slot] - tastes.position.max()).exp()
    return look * click.sigmoid(), (odds[1] + tastes.match * (click - tastes.click.base)).sigmoid()


def test_a_page_moves_beliefs_by_bayes_rule(tastes):
    n, tables = 12, tastes.utilities()
    scaled = features(tastes, n)
    state, leaves = tastes.begin(scaled), torch.arange(n) % 2 == 0
    torch.testing.assert_close(tastes.beliefs(state).sum(1), torch.ones(n))
    for turn in range(3):
        decision, generator = pages(tastes, n, turn), seeded(turn)
        clicked = (torch.rand(n, 3, generator=generator) < 0.4).float() * (decision.slate >= 0)
        converted = clicked * (torch.rand(n, 3, generator=generator) < 0.5)
        seen = state[:, CLASSES:].reshape(n, len(FADES), -1)
        expected = state[:, :CLASSES].clone()
        for who, slot in itertools.product(range(n), range(3)):
            if decision.slate[who, slot] < 0:
                continue
            click, purchase = by_hand(tastes, scaled, decision, seen, who, slot)
            likely = click if clicked[who, slot] else 1 - click
            if clicked[who, slot]:
                likely = likely * (purchase if converted[who, slot] else 1 - purchase)
            expected[who] += likely.log()
        expected = expected.softmax(1)
        switch = tastes.switch.sigmoid()
        expected[leaves] = (1 - switch) * expected[leaves] + switch * tastes.share.softmax(0)
        odds = tastes.page_odds(tables, scaled, decision)
        state = tastes.after(state, odds, decision.slate, clicked, converted, leaves)
        torch.testing.assert_close(tastes.beliefs(state), expected, atol=1e-5, rtol=1e-4)


def test_what_was_seen_fades_by_page_and_by_visit(tastes):
    scaled, tables = features(tastes, 2), tastes.utilities()
    state, leaves = tastes.begin(scaled), torch.tensor([False, True])
    expected = torch.zeros(2, len(FADES), tastes.values)
    for turn in range(4):
        decision = pages(tastes, 2, 20 + turn)
        for who, item in ((shopper, item) for shopper in range(2) for item in decision.slate[shopper].tolist()):
            for kind in tastes.kinds[item].tolist() if item >= 0 else ():
                expected[who, :, kind] += 1 / 3
        odds = tastes.page_odds(tables, scaled, decision)
        state = tastes.after(state, odds, decision.slate, torch.zeros(2, 3), None, leaves)
        # Both shoppers' sums fade to the next page here; the second one's is on another visit.
        seen = state[:, CLASSES:].reshape(2, len(FADES), -1)
        for speed, (page, visit) in enumerate(FADES):
            torch.testing.assert_close(seen[0, speed], expected[0, speed])
            torch.testing.assert_close(seen[1, speed], visit * expected[1, speed])
            expected[0, speed] *= page
            expected[1, speed] *= page * visit


def test_what_is_expected_is_the_mean_over_classes(tastes):
    n = 5
    decision, scaled = pages(tastes, n, 3), features(tastes, n)
    click, purchase = tastes.page_odds(tastes.utilities(), scaled, decision)
    belief = torch.rand(n, CLASSES, generator=seeded(6)).softmax(1)
    told = tastes.expected(belief[:, None], click, purchase)
    assert told.shape == (n, 3, 2)
    none = torch.zeros(n, len(FADES), tastes.values)
    alone = decision.slate.clone()
    for who, slot in itertools.product(range(n), range(3)):
        if decision.slate[who, slot] < 0:
            continue
        decision.slate[:] = -1
        decision.slate[who, slot] = alone[who, slot]  # with nothing around it
        liked, bought = by_hand(tastes, scaled, decision, none, who, slot)
        look = (tastes.position[slot] - tastes.position.max()).exp()
        clicks, both = (belief[who] * liked / look).sum(), (belief[who] * liked / look * bought).sum()
        expected = torch.stack([clicks.logit() - tastes.click.base, (both / clicks).logit() - tastes.purchase.base])
        torch.testing.assert_close(told[who, slot], expected, atol=1e-4, rtol=1e-4)
    assert tastes.expected(belief[:, None], click, None).shape == (n, 3, 1)


def test_worth_weighs_clicks_and_purchases(tastes):
    click, purchase = torch.randn(4, 3, CLASSES, generator=seeded(1)), torch.randn(4, 3, CLASSES, generator=seeded(2))
    reward = RewardSpec(click=2.0, conversion=5.0)
    expected = click.sigmoid() * (2 + 5 * purchase.sigmoid())
    torch.testing.assert_close(tastes.worth(click, purchase, reward), expected)
    torch.testing.assert_close(tastes.worth(click, None, reward), 2 * click.sigmoid())


def test_an_unknown_kind_is_like_nothing(regulars):
    builder = regulars[1].builder
    recorded = regulars[1].ensembles["train"].models[0].recorded
    tastes = TasteClasses(builder, 3, recorded, regulars[1].lines, 0.3, 0.4)
    tastes.kinds[:] = tastes.values - 1
    slate = torch.tensor([[0, 1, 2]])
    assert not tastes.alike(slate).any()
    assert not tastes.shown(slate).any()
