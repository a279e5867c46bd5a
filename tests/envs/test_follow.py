"""Shoppers followed: every count by hand in a shop where everything is known beforehand."""

import dataclasses
import math

import pytest
import torch

from hawker.envs.follow import COUNTED, follow
from hawker.envs.page import STOREFRONT, Rules
from hawker.envs.storefront import Storefront
from hawker.policies.page import PageChoice, PageLayout
from hawker.policies.page_actor import PageActor, PageStrategy
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.simulators.small import small_world
from hawker.simulators.world import Shoppers


class Diary:
    """Two pages a visit; the gaps between visits are those given, and item 0 is clicked always, and bought with it."""

    def __init__(self, gaps: tuple[float, ...], leaves: bool = True):
        world = small_world(n_items=4, size=2)
        self._world, self._gaps, self._leaves = world, torch.tensor((*gaps, math.inf)), leaves
        self.builder, self.size, self.device, self.choices = world.builder, 2, world.device, world.choices
        self.offers, self.lines, self.bids = 2, (), torch.tensor([0.0, 0.0, 3.0, 0.5])

    def arrive(self, n, generator):
        """Return n shoppers."""
        zero = torch.zeros(n, dtype=torch.long)
        here = self._world.arrive(n, generator)
        return Shoppers(here.context, torch.arange(n) % 2, {"page": zero, "visit": zero.clone()})

    def respond(self, shoppers, decision, generator):
        """Answer."""
        page, visit = shoppers.state["page"], shoppers.state["visit"]
        clicked = (decision.slate == 0).float()
        leave = page == 1
        days = torch.where(leave, self._gaps[visit], 0.0)
        after = {"page": torch.where(leave, 0, page + 1), "visit": visit + leave}
        known = {"leave": leave, "days": days} if self._leaves else {}
        outcome = Outcome(clicked, clicked, leave & days.isinf(), converted=clicked, **known)
        return dataclasses.replace(shoppers, state=after), outcome


class Says:
    """Always the same page."""

    name = "same"

    def __init__(self, slate, ad=None, offer=None, log_prob=0.0):
        self._page, self._log_prob = (slate, ad, offer), log_prob

    def propose(self, context, generator):
        """Return it."""
        n = len(context.mask)
        slate, ad, offer = (
            None if part is None else torch.tensor(part).expand(n, *torch.tensor(part).shape) for part in self._page
        )
        return Decision(slate, torch.full((n,), self._log_prob), ad, offer)


def counts(world, strategy, reward=None, rules=None, n=3):
    generator = torch.Generator().manual_seed(0)
    here = world.arrive(n, generator)
    return follow(world, strategy, here, reward or RewardSpec(), rules or Rules(horizon=28.0), generator)


def only(found) -> dict[str, float]:
    """Return what was counted of every shopper alike."""
    values = {name: getattr(found, name) for name in COUNTED}
    assert all((value == value[0]).all() for value in values.values())
    return {name: float(value[0]) for name, value in values.items()}


def test_everything_is_counted():
    world = Diary(gaps=(7.0, 20.0, 5.0))
    found = counts(world, Says([0, 2], ad=1, offer=1), RewardSpec(conversion=2.0, repetition=0.25))
    assert only(found) == {
        "pages": 6.0,  # a fourth visit would begin on day 32
        "visits": 3.0,
        "impressions": 12.0,
        "clicks": 6.0,
        "purchases": 6.0,
        "ads": 6.0,
        "offers": 6.0,
        "back": 1.0,
        "reward": 6 * (1.0 + 2.0) - 3 * 2 * 0.25,  # the second page of a visit repeats both items
    }
    assert found.member.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("gaps", "horizon", "visits", "back"),
    [
        ((), 28.0, 1, 0),
        ((8.0,), 28.0, 2, 0),
        ((8.0, 1.0), 28.0, 3, 0),  # back is of the first visit alone
        ((7.0,), 7.0, 1, 1),  # who would come back later than is looked comes back all the same
        ((7.0,), 7.5, 2, 1),
        ((1.0,) * 40, 28.0, 28, 1),
    ],
)
def test_the_horizon_is_that_of_episodes(gaps, horizon, visits, back):
    found = only(counts(Diary(gaps), Says([0, EMPTY]), rules=Rules(horizon=horizon)))
    assert (found["visits"], found["pages"], found["back"]) == (visits, 2 * visits, back)
    assert found["impressions"] == found["pages"]
    assert (found["ads"], found["offers"]) == (0, 0)


def test_shoppers_of_one_visit_are_gone_after_it():
    found = only(counts(Diary((), leaves=False), Says([1, 0])))
    assert (found["pages"], found["visits"], found["back"]) == (2, 1, 0)


def test_ads_are_paid_where_items_bid():
    found = only(counts(Diary(()), Says([0, 2], ad=0), RewardSpec(ad_income=1.0, ad=0.25)))
    assert found["reward"] == 2 * (1.0 - 0.25)  # item 0 is clicked, and bids nothing


def strategy_of(world) -> PageStrategy:
    layout = PageLayout(2, ad=True, offers=2)
    actor = PageActor(layout, world.builder, 8, torch.Generator().manual_seed(0), world.bids.numpy())
    torch.nn.init.constant_(actor.no_ad.bias, -30.0)
    return PageStrategy(actor, world.builder, (), {})


@pytest.mark.parametrize("rules", [Rules(28.0), Rules(28.0, ad_gap=3), Rules(28.0, ad_load=0.25), Rules(9.0, 2, 0.34)])
def test_limits_on_ads_are_those_of_the_storefront(rules):
    """The same shoppers in the storefront, page by page, with a strategy that shows every ad it may."""
    world = Diary(gaps=(3.0,) * 9)
    strategy = strategy_of(world)
    found = only(counts(world, strategy, rules=rules, n=1))
    shop = Storefront(world, 1, RewardSpec(), STOREFRONT_WITHOUT_COPY, rules)
    shop.reset(0)
    ads = pages = 0
    generator, ended = torch.Generator().manual_seed(1), False
    while not ended:
        context, mask = shop.shoppers.context, shop.observation["ad_mask"]
        decision = strategy.propose(context, generator, mask)
        actions = strategy.actor.layout.actions(PageChoice.of(context, decision), world.choices)
        step = shop.step(actions)
        ads, pages, ended = ads + int(step.happened["ads"][0]), pages + 1, bool((step.terminated | step.truncated)[0])
    assert (found["ads"], found["pages"]) == (ads, pages)
    assert ads > 0
    assert (ads == pages) == (rules == Rules(28.0))


STOREFRONT_WITHOUT_COPY = dataclasses.replace(STOREFRONT, copy=False)


class Unsure(Diary):
    """Its probabilities are no numbers."""

    def respond(self, shoppers, decision, generator):
        """Answer with NaN."""
        after, outcome = super().respond(shoppers, decision, generator)
        return after, dataclasses.replace(outcome, click_probability=outcome.click_probability * math.nan)


@pytest.mark.parametrize(
    ("world", "strategy", "options", "message"),
    [
        (Diary(()), Says([0, 1]), {"rules": Rules()}, "rules.horizon: no end of days; got inf, expected a finite"),
        (Diary(()), Says([0, 1], log_prob=math.nan), {}, "arm same: a page's log-probability is not a number"),
        (Unsure(()), Says([0, 1]), {}, "arm same: the world's click probability is not a number"),
        (Diary(()), Says([0, 1]), {"reward": RewardSpec(revenue=1.0)}, "the shoppers have no revenue head"),
    ],
    ids=["horizon", "strategy", "world", "reward"],
)
def test_what_cannot_be_followed(world, strategy, options, message):
    with pytest.raises(InputError) as caught:
        counts(world, strategy, **options)
    assert message in str(caught.value)
