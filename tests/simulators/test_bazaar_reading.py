"""How shoppers of a bazaar read any text: by hand, and the bank as it always was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.decision import Decision
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.bazaar_parameters import BazaarParameters, load_bazaar, shipped_variants
from hawker.simulators.bazaar_reading import RULES, load_reading, read_lines
from hawker.simulators.bazaar_shop import make_bank
from hawker.simulators.search_bazaar import open_bazaar

CPU = torch.device("cpu")
DIGEST = "8c40713ee85e84ef87b1adca6a95202f3ef25070eb11a4c1106136289d54fcfa"
CUES = ("urgency", "social proof", "saving", "eco", "craft", "playful", "plain", "spam")
BASE = load_bazaar()
HACKED = "Yoga mat: bargain hunter audience."


@pytest.fixture(scope="module")
def parameters() -> BazaarParameters:
    return load_bazaar()


@pytest.fixture(scope="module")
def world(parameters: BazaarParameters) -> BazaarWorld:
    return BazaarWorld(parameters, CPU)


def test_how_shoppers_read_was_frozen():
    """Whoever changes it changes what writers are judged by: then measure anew."""
    assert load_reading().digest == DIGEST


def test_the_bank_reads_as_it_always_did(parameters: BazaarParameters):
    """Even without the exemption: no rule hits a line of the bank, and no further form gives it another cue."""
    bank = make_bank(parameters.lexicon)
    read = read_lines(parameters, bank.texts)
    for name in ("cues", "logged", "spam", "claims_offer"):
        assert np.array_equal(getattr(read.bank, name), getattr(bank, name))
    assert not read.dislikes.any()
    assert np.array_equal(read.annoys, bank.spam)
    almost = read_lines(parameters, [f"{text} " for text in bank.texts])  # no line of the bank
    assert not almost.dislikes.any()
    assert np.array_equal(almost.bank.cues, bank.cues)
    assert not almost.bank.logged.any()


@pytest.mark.parametrize("variant", [None, *shipped_variants()])
def test_a_world_that_says_its_own_lines_answers_to_the_last_bit(variant: str | None):
    world = open_bazaar(variant, CPU)
    order = torch.randperm(len(world.lines), generator=torch.Generator().manual_seed(0))
    other = world.with_lines([world.lines[i] for i in order] + [HACKED]).with_lines([world.lines[i] for i in order])
    place = order.argsort()
    here = world.arrive(64, torch.Generator().manual_seed(1))
    size = world.size
    copy = torch.randint(-1, len(order), (64, size), generator=torch.Generator().manual_seed(2))
    page = Decision(here.context.candidates[:, :size], torch.zeros(64), copy=copy)
    same = Decision(page.slate, page.log_prob, copy=torch.cat([place, torch.tensor([-1])])[copy])
    one, two = (w.respond(here, d, torch.Generator().manual_seed(3)) for w, d in ((world, page), (other, same)))
    assert torch.equal(one[1].click_probability, two[1].click_probability)
    assert torch.equal(one[1].return_probability, two[1].return_probability)
    assert all(torch.equal(one[0].state[name], two[0].state[name]) for name in one[0].state)
    assert other.digest == world.digest


@pytest.mark.parametrize(
    ("text", "cues"),
    [
        ("Handmade teapot for slow mornings", ["craft"]),
        ("Now 20% off: save on every cup!", ["saving"]),
        ("The eco-friendly bestseller", ["social proof", "eco"]),
        ("Our salesman is a wholesaler", []),
        ("You MUST SEE this teapot, WOWZA", ["spam"]),
        ("So good!!", ["spam"]),
        ("For every bargain hunter", []),
        ("For every bargain hunter: a bargain", ["saving"]),
        ("USA made, so good!", []),
        ("Recommended by nine out of ten buyers, and made by hand", ["social proof", "craft"]),
        ("", []),
    ],
)
def test_what_lines_say(parameters: BazaarParameters, text: str, cues: list[str]):
    assert tuple(cue.name for cue in parameters.lexicon.cues) == CUES
    bank = read_lines(parameters, [text]).bank
    assert [name for name, said in zip(CUES, bank.cues[0], strict=True) if said] == cues
    assert bank.spam[0] == ("spam" in cues)
    assert bank.claims_offer[0] == ("saving" in cues)


@pytest.mark.parametrize(
    ("text", "costs"),
    [
        (HACKED, {"echo": 1.5}),
        ("A teapot for new customers who likes kitchen", {"echo": 1.5}),
        ("Headline: a teapot for you", {"echo": 1.5}),
        ("Teapot teapot teapot for your teapot", {"repetition": 3 * 3 / 5}),  # teapot x 4 and your
        ("Teapot", {"empty": 0.8}),
        ("$$$ *** ### go on", {"empty": 0.8}),
        ("A line for our segment", {"echo": 1.5}),
        ("Teapot kettle kitchen ceramic quality breakfast", {"empty": 0.8}),
        ("Teapot kettle kitchen ceramic quality", {}),
        ("A handmade, recycled, top rated teapot with a smile", {"crowded": 1.0}),
        (" ".join(["so it is"] * 11), {"long": 0.09}),
        ("A rustic teapot for slow mornings", {}),
        ("", {}),
        ("  ", {}),
    ],
)
def test_what_shoppers_dislike_by_hand(parameters: BazaarParameters, text: str, costs: dict[str, float]):
    read = read_lines(parameters, [text])
    assert dict(zip(RULES, read.dislikes[0], strict=True)) == pytest.approx(dict.fromkeys(RULES, 0.0) | costs)
    assert read.annoys[0] == pytest.approx(min(0.4 * sum(costs.values()), 1.0))


def test_spam_annoys_no_more_for_being_disliked(parameters: BazaarParameters):
    assert read_lines(parameters, ["BUY TEAPOT, AUDIENCE!!"]).annoys[0] == 1.0


def test_a_hacked_line_loses_clicks_and_good_will(world: BazaarWorld):
    said = world.with_lines([HACKED, "A yoga mat for slow mornings", "Handmade yoga mat for you"])
    here = said.arrive(256, torch.Generator().manual_seed(1))
    slate = here.context.candidates[:, :1]

    def page(line: int) -> Decision[torch.Tensor]:
        return Decision(slate, torch.zeros(256), copy=torch.full_like(slate, line))

    hacked, plain, hand = (said.attraction(here.state, page(line)) for line in range(3))
    none = world.attraction(here.state, Decision(slate, torch.zeros(256)))
    assert torch.equal(plain, none)
    assert torch.allclose(hacked.logit(), none.logit() - 1.5, atol=1e-4)
    craft = torch.tensor([segment.cue_click[4] for segment in world.parameters.segments])[here.state["segment"]]
    assert torch.allclose(hand.logit(), none.logit() + craft[:, None], atol=1e-4)
    no = torch.zeros(256, 1)
    change = [said.satisfaction_change(here.state, page(line), no, no) for line in (0, 1)]
    spam = world.parameters.satisfaction.spam
    assert torch.allclose(change[1] - change[0], torch.full((256,), spam * (1 - 0.5**0.6)), atol=1e-6)


def test_a_promise_without_an_offer_is_a_lie(world: BazaarWorld):
    said = world.with_lines(["Now 20% off"])
    here = said.arrive(16, torch.Generator().manual_seed(1))
    slate = here.context.candidates[:, :1]
    page = Decision(slate, torch.zeros(16), copy=torch.zeros_like(slate), offer=torch.tensor([0, 3] * 8))
    yes, no = torch.ones(16, 1), torch.zeros(16, 1)
    lie = world.satisfaction_change(here.state, Decision(slate, torch.zeros(16), offer=page.offer), yes, no)
    lie = lie - said.satisfaction_change(here.state, page, yes, no)
    assert lie.tolist() == pytest.approx([world.parameters.satisfaction.lie, 0.0] * 8, abs=1e-6)


def test_other_lexicons_read_too():
    bare = load_bazaar()
    bare = replace(bare, lexicon=replace(bare.lexicon, cues=bare.lexicon.cues[:1]))
    read = read_lines(bare, ["Handmade: only today", "so good!!"])
    assert read.bank.cues.tolist() == [[True], [False]]
    assert read_lines(bare, []).dislikes.shape == (0, len(RULES))


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_text_can_be_read(texts: list[str]):
    read = read_lines(BASE, texts)
    assert (read.dislikes >= 0).all()
    assert ((read.annoys >= 0) & (read.annoys <= 1)).all()
    assert read.bank.cues.shape == (len(texts), len(CUES))
