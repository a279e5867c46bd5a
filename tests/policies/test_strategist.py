"""The strategist: its table says what the bank says, and every page of a tiny shop is counted."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from hawker.policies.briefs import Brief
from hawker.policies.copy_bank import Candidate, ChoiceConfig, CopyBank, build_bank
from hawker.policies.guardrails import Guardrails
from hawker.policies.page import PageLayout
from hawker.policies.page_actor import LikeliestPages, PageActor, PageStrategy
from hawker.policies.strategist import BankTable, Strategist, audience_of
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.simulators.small import small_tables

CPU = torch.device("cpu")
GUARDRAILS = Guardrails.load()
IMPRESSIONS, ITEMS = small_tables(n_items=3, n_rows=60)
BUILDER = ContextBuilder.fit(IMPRESSIONS, ITEMS)
LABELS = ("new", "returning", "back after a while")
DISCOUNTS = (0.0, 0.2)
WORTH = {"A quiet pot": 0.02, "Warm wool for cold days": 0.03, "Made to last": 0.01, "Now 20% off": 0.05}
LOGGED = ("Fine for every day", "A quiet pot")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def written(item: str, audience: str, discount: float, line: str, surface: str = "headline") -> Candidate:
    return Candidate(item, Brief(surface, f"Pot of {item}", discount=discount, audience=audience), line)


def bank_of(candidates: list[Candidate], choice: ChoiceConfig | None = None) -> CopyBank:
    def scorer(items, audiences, discounts, lines):
        return np.array([[WORTH.get(line, 0.0) for line in lines]])

    return build_bank(candidates, scorer, GUARDRAILS, "a writer", choice or ChoiceConfig(0.02, 0.2))


def small_bank() -> CopyBank:
    """Lines for anybody and for new shoppers, with and without an offer; none for the third item."""
    return bank_of(
        [
            written("item-0", "", 0.0, "A quiet pot"),
            written("item-0", "", 0.0, "Made to last"),
            written("item-0", "", 0.2, "Now 20% off"),
            written("item-0", "new", 0.0, "Warm wool for cold days"),
            written("item-0", "new", 0.0, "A quiet pot"),
            written("item-0", "new", 0.0, "Made to last"),
            written("item-1", "returning", 0.2, "Now 20% off"),
            written("item-1", "returning", 0.2, "A quiet pot"),
            written("item-1", "", 0.0, "Not for this surface", "promotion"),
            written("item-9", "", 0.0, "For an item that is no longer sold"),
            written("item-1", "gone for good", 0.0, "For an audience that is not there"),
        ]
    )


def lines_of(bank: CopyBank) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*LOGGED, *bank.texts("headline")]))


def table_of(bank: CopyBank, discounts: tuple[float, ...] = DISCOUNTS, items=BUILDER.catalog.item_ids) -> BankTable:
    return BankTable.of(bank, items, LABELS, discounts, "headline", lines_of(bank), CPU)


def every_slot(table: BankTable, lines: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Items (n, 1), audiences (n,), tiers (n,) and numbers (n, 1): all that there are."""
    sizes = (range(table.items), range(len(LABELS)), range(table.tiers), range(lines))
    item, audience, tier, number = torch.tensor(list(itertools.product(*sizes))).unbind(1)
    return item[:, None], audience, tier, number[:, None]


def agrees(bank: CopyBank, discounts: tuple[float, ...] = DISCOUNTS) -> None:
    table, lines, ids = table_of(bank, discounts), lines_of(bank), BUILDER.catalog.item_ids
    item, audience, tier, number = every_slot(table, len(lines))
    asked = [ids[i] for i in item[:, 0]], [LABELS[a] for a in audience], [discounts[t] for t in tier]
    expected = bank.probabilities(*asked, "headline", [lines[n] for n in number[:, 0]])
    found = table.log_prob(item, audience, tier, number)[:, 0].exp().numpy()
    assert found == pytest.approx(expected, rel=1e-6)
    assert found.reshape(-1, len(lines)).sum(1) == pytest.approx(1.0, abs=1e-6)


def test_the_table_says_what_the_bank_says():
    agrees(small_bank())


@pytest.mark.parametrize("discounts", [(0.0,), (0.0, 0.2, 0.0, 0.2), (0.0, 0.2 + 1e-6), (0.0, 0.35)])
def test_tiers_of_any_discounts(discounts: tuple[float, ...]):
    agrees(small_bank(), discounts)


def test_a_bank_without_lines_says_templates():
    agrees(bank_of([]))
    agrees(bank_of([written("item-1", "", 0.2, "FREE!!")]))


keys = st.tuples(
    st.sampled_from(["item-0", "item-1", "item-2", "item-9"]),
    st.sampled_from(["", *LABELS, "gone for good"]),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from(sorted(WORTH)),
)


@settings(max_examples=10, deadline=None)
@given(st.lists(keys, max_size=12), st.floats(1e-3, 1), st.floats(0, 1))
def test_tables_of_any_bank(said: list[tuple[str, str, float, str]], temperature: float, floor: float):
    agrees(bank_of([written(*each) for each in said], ChoiceConfig(temperature, floor)))


def test_draws_are_as_frequent_as_their_propensities():
    bank, n = small_bank(), 60_000
    table, lines = table_of(bank), lines_of(bank)
    items = torch.tensor([[0, 1, EMPTY, 2]]).expand(n, -1)
    audience, tier = torch.arange(n) % 3, torch.arange(n) // 3 % 2
    numbers, log_prob = table.choose(items, audience, tier, generator(4))
    assert torch.equal(log_prob, table.log_prob(items, audience, tier, numbers))
    assert (numbers[:, 2] == EMPTY).all()
    assert not log_prob[:, 2].any()
    new = numbers[(audience == 0) & (tier == 0), 0]  # three lines of the audience's own
    every = torch.arange(len(lines))[:, None]
    expected = table.log_prob(torch.zeros_like(every), torch.zeros(len(lines)).long(), None, every).exp()[:, 0]
    counted = torch.bincount(new, minlength=len(lines))
    there = expected > 0
    assert there.sum() == 3
    assert not counted[~there].any()
    assert chisquare(counted[there].numpy(), len(new) * expected[there].double().numpy()).pvalue > 0.001
    offered = numbers[(audience == 0) & (tier == 1), 0]  # none of their own: the line for anybody
    assert {lines[i] for i in offered.unique()} == {"Now 20% off"}
    plain = numbers[tier == 0]
    assert "Now 20% off" not in {lines[i] for i in plain[plain != EMPTY].unique()}
    assert {lines[i] for i in numbers[:, 3].unique()} == {"Have a look"}


def test_lines_are_looked_up_without_a_word_to_the_host(never_waiting):
    table, source = table_of(small_bank()), generator()
    items, audience, tier = torch.tensor([[0, 1, EMPTY, 2]] * 6), torch.arange(6) % 3, torch.arange(6) // 3
    with never_waiting():
        numbers, _ = table.choose(items, audience, tier, source)
        log_prob = table.log_prob(items, audience, tier, numbers)
    assert torch.isfinite(log_prob).all()


def test_what_cannot_be_drawn():
    table = table_of(small_bank())
    items, audience = torch.tensor([[0, 0, EMPTY, EMPTY]]), torch.tensor([1])
    told = table.log_prob(items, audience, None, torch.tensor([[EMPTY, 0, 1, EMPTY]]))  # line 0 is the log's alone
    assert told.tolist() == [[-torch.inf, -torch.inf, -torch.inf, 0.0]]


@pytest.mark.parametrize("drawn", [0.0, 1.0 - 2**-24])
def test_the_first_and_the_last_draw_find_a_line(monkeypatch: pytest.MonkeyPatch, drawn: float):
    """Rounding does not add up to 1: ten lines of 0.1 each come to less."""
    said = [
        written("item-0", "", 0.0, f"A pot as {word}")
        for word in ["quiet", "dark", "warm", "old", "new", "red", "tall", "wide", "blue", "low"]
    ]
    bank = bank_of(said, ChoiceConfig(1.0, 1.0))
    assert len(bank) == 10
    table = table_of(bank)
    monkeypatch.setattr(torch, "rand", lambda shape, **told: torch.full(shape, drawn))
    numbers, log_prob = table.choose(torch.tensor([[0, 1]]), torch.tensor([2]), None, generator())
    texts = [lines_of(bank)[number] for number in numbers[0]]
    assert texts == [list(bank.table["line"])[0 if drawn == 0 else -1], "Have a look"]
    assert log_prob[0].exp().tolist() == pytest.approx([0.1, 1.0])


def test_a_line_that_the_world_lacks():
    bank = small_bank()
    with pytest.raises(InputError, match=r"the world lacks a line of the bank; got 'A quiet pot'"):
        BankTable.of(bank, BUILDER.catalog.item_ids, LABELS, DISCOUNTS, "headline", ("Fine for every day",), CPU)


def test_texts_of_a_bank_are_what_it_may_say():
    texts = small_bank().texts("headline")
    assert len(set(texts)) == len(texts)
    assert set(WORTH) < set(texts)
    assert {"Pot of item-1", "Have a look"} < set(texts)
    assert not any("surface" in text for text in texts)


# ---------------------------------------------------------------------------------------------------- the strategy

LAYOUT = PageLayout(2, ad=True, offers=2, lines=2)
BIDS = np.array([0.0, 0.5, 0.0])


def actor_of(layout: PageLayout = LAYOUT) -> PageActor:
    vectors = np.eye(2, 4, dtype=np.float32) if layout.lines else None
    actor, source = PageActor(layout, BUILDER, 8, generator(3), BIDS, vectors), generator(4)
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=source))
    return actor


def pages_of(layout: PageLayout = LAYOUT) -> PageStrategy:
    return PageStrategy(actor_of(layout), BUILDER, LOGGED if layout.lines else (), {})


def contexts(rows: slice = slice(None)) -> Context[Tensor]:
    plain = BUILDER.from_impressions(IMPRESSIONS[rows]).map(lambda array: torch.from_numpy(np.array(array)))
    audience = (torch.arange(len(plain.mask)) % 3).float()[:, None]
    return dataclasses.replace(plain, shopper=torch.cat([plain.shopper, audience], 1))


@pytest.fixture
def strategist() -> Strategist:
    return Strategist(pages_of(), table_of(small_bank()))


def every_page() -> Decision[Tensor]:
    """Every page of two slots with at most one ad, of item 1 alone, and any line or none in each slot."""
    rows = []
    lines = range(EMPTY, len(lines_of(small_bank())))
    for slate in itertools.permutations(range(3), 2):
        slots = [EMPTY] + [slot for slot in range(2) if slate[slot] == 1]
        rows += [
            (*slate, slot, tier, *said)
            for slot, tier, said in itertools.product(slots, range(2), itertools.product(lines, repeat=2))
        ]
    pages = torch.tensor(rows)
    return Decision(pages[:, :2], torch.zeros(len(rows)), pages[:, 2], pages[:, 3], pages[:, 4:])


def code(decision: Decision[Tensor]) -> list[tuple[int, ...]]:
    parts = [decision.slate, decision.ad[:, None], decision.offer[:, None], decision.copy]
    return [tuple(row) for row in torch.cat(parts, 1).tolist()]


@pytest.mark.parametrize("kind", [lambda pages: pages, LikeliestPages], ids=["drawn", "likeliest"])
def test_all_pages_together_are_certain_and_as_frequent_as_they_should_be(strategist: Strategist, kind):
    strategist = Strategist(kind(strategist.pages), strategist.table)
    pages, n = every_page(), 40_000
    for row in range(3):  # one of each audience
        context = contexts(slice(row, row + 1))
        context = dataclasses.replace(context, shopper=context.shopper.clone())
        context.shopper[:, -1] = row
        log_prob = strategist.log_prob(context.map(lambda array: array.expand(len(pages.slate), -1)), pages)
        chance = log_prob.double().exp()
        assert float(chance.sum()) == pytest.approx(1.0, abs=1e-5)
        drawn = strategist.propose(context.map(lambda array: array.expand(n, -1)), generator(row))
        counted = pd.Series(code(drawn)).value_counts().reindex(code(pages), fill_value=0).to_numpy()
        assert counted.sum() == n
        rare = chance.numpy() * n < 5
        observed, expected = (np.append(part[~rare], part[rare].sum()) for part in (counted, n * chance.numpy()))
        kept = expected > 0
        if kept.sum() > 1:
            assert chisquare(observed[kept], (expected * n / expected.sum())[kept]).pvalue > 0.001
        possible = int((chance > 0).sum())
        assert possible >= 20 if kind is not LikeliestPages else possible <= 9  # three lines in each slot, at most


@pytest.mark.parametrize("kind", [lambda pages: pages, LikeliestPages], ids=["drawn", "likeliest"])
def test_a_proposal_says_its_own_log_probability(strategist: Strategist, kind):
    strategist, context = Strategist(kind(strategist.pages), strategist.table), contexts()
    before = torch.get_rng_state()
    decision, again = (strategist.propose(context, generator(5)) for _ in range(2))
    assert code(decision) == code(again)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(decision.log_probs) == ["slate", "ad", "offer", "copy"]
    torch.testing.assert_close(sum(decision.log_probs.values()), decision.log_prob)
    assert torch.equal(strategist.log_prob(context, decision), decision.log_prob)
    assert torch.isfinite(decision.log_prob).all()
    other = dataclasses.replace(decision, copy=torch.zeros_like(decision.copy))  # the log's line, which is no bank's
    assert strategist.log_prob(context, other).tolist() == [-torch.inf] * len(context.mask)


def test_the_parts_are_the_actors_and_the_banks(strategist: Strategist):
    context = contexts()
    decision = strategist.propose(context, generator(1))
    plain, audience = audience_of(context)
    assert audience.tolist() == [i % 3 for i in range(len(context.mask))]
    alone = pages_of(PageLayout(2, ad=True, offers=2))
    actor = strategist.pages.actor
    assert alone.actor.load_state_dict({k: v for k, v in actor.state_dict().items() if k in alone.actor.state_dict()})
    same = Strategist(alone, strategist.table).log_prob(context, decision)
    torch.testing.assert_close(same, decision.log_prob)
    own = strategist.pages.pages(plain).without_copy()
    assert own.layout.parts == ("slate", "ad", "offer")
    assert strategist.pages.pages(plain).layout == LAYOUT
    bank, ids = small_bank(), BUILDER.catalog.item_ids
    lines = lines_of(bank)
    expected = [
        bank.probabilities(
            [ids[item] for item in slate],
            [LABELS[who]] * 2,
            [DISCOUNTS[tier]] * 2,
            "headline",
            [lines[n] for n in said],
        )
        for slate, who, tier, said in zip(
            decision.slate.tolist(), audience.tolist(), decision.offer.tolist(), decision.copy.tolist(), strict=True
        )
    ]
    assert decision.log_probs["copy"].exp().numpy() == pytest.approx(np.prod(expected, 1), rel=1e-5)


def test_the_likeliest_page_with_lines_of_the_bank(strategist: Strategist):
    context, likeliest = contexts(), LikeliestPages(strategist.pages)
    always = Strategist(likeliest, strategist.table)
    decision = always.propose(context, generator(2))
    shown = likeliest.propose(audience_of(context)[0], generator())
    for part in ("slate", "ad", "offer"):
        assert torch.equal(getattr(decision, part), getattr(shown, part)), part
        assert not decision.log_probs[part].any()
    assert torch.equal(decision.log_prob, decision.log_probs["copy"])
    for part in ("slate", "offer"):
        other = dataclasses.replace(decision, **{part: getattr(decision, part).roll(1, -1).flip(0)})
        moved = (getattr(other, part) != getattr(decision, part)).reshape(len(context.mask), -1).any(1)
        assert moved.any()
        assert (always.log_prob(context, other)[moved] == -torch.inf).all()


@pytest.mark.parametrize("kind", [lambda pages: pages, LikeliestPages], ids=["drawn", "likeliest"])
def test_a_mask_narrows_the_ads(strategist: Strategist, kind):
    strategist, context = Strategist(kind(strategist.pages), strategist.table), contexts()
    none = torch.zeros_like(context.mask)
    decision = strategist.propose(context, generator(), none)
    assert (decision.ad == EMPTY).all()
    assert torch.equal(strategist.log_prob(context, decision, none), decision.log_prob)


def test_pages_without_offers_are_tier_none():
    strategist = Strategist(pages_of(PageLayout(2)), table_of(small_bank()))
    decision = strategist.propose(contexts(), generator())
    assert decision.offer is None
    assert decision.ad is None
    assert list(decision.log_probs) == ["slate", "copy"]
    assert torch.equal(strategist.log_prob(contexts(), decision), decision.log_prob)
    assert lines_of(small_bank()).index("Now 20% off") not in decision.copy


def test_pages_with_fewer_items_than_slots(strategist: Strategist):
    context = contexts()
    context = dataclasses.replace(context, mask=torch.tensor([True, False, False]).expand_as(context.mask))
    decision = strategist.propose(context, generator())
    assert (decision.slate[:, 1] == EMPTY).all()
    assert (decision.copy[:, 1] == EMPTY).all()
    assert (decision.copy[:, 0] != EMPTY).all()
    assert torch.equal(strategist.log_prob(context, decision), decision.log_prob)
