"""Shoppers who understand further lines: the log's lines do what they did, and new ones what their words say."""

import copy
import dataclasses

import pytest
import torch

from hawker.shop.artefacts import write_directory
from hawker.shop.decision import EMPTY, Decision
from hawker.shop.errors import InputError
from hawker.shop.language import HashedEncoder
from hawker.shop.reward import RewardSpec
from hawker.simulators.learned import LearnedWorld
from hawker.simulators.reader import ReadWorld
from hawker.simulators.shopper import Ensemble
from hawker.simulators.store import FittedShoppers

FURTHER = ("a boot made by hand, for slow days", "big lamps are on sale", "zzz")
REWARD = RewardSpec(conversion=5.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def logged(regulars) -> FittedShoppers:
    return regulars[1]


@pytest.fixture(scope="module")
def hearing(logged) -> FittedShoppers:
    return logged.with_lines(FURTHER)


def reading(shoppers: FittedShoppers, world: LearnedWorld) -> ReadWorld:
    return ReadWorld(world, shoppers.builder, shoppers.ensembles["train"], REWARD, shoppers.lines.texts)


def shown(context, seed: int, lowest: int, lines: int) -> Decision[torch.Tensor]:
    """Three random candidates, an offer and an ad for everybody, with lines from ``lowest`` to before ``lines``."""
    generator, n = seeded(seed), len(context.mask)
    picks = torch.rand(context.mask.shape, generator=generator).masked_fill(~context.mask, -1.0).topk(3, 1).indices
    return Decision(
        context.candidates.gather(1, picks),
        torch.zeros(n),
        ad=torch.randint(-1, 3, (n,), generator=generator),
        offer=torch.randint(0, 3, (n,), generator=generator),
        copy=torch.randint(lowest, lines, (n, 3), generator=generator),
    )


def test_lines_are_numbered_on(logged, hearing):
    own = logged.lines.texts
    assert hearing.lines.texts == own + FURTHER
    again = logged.with_lines([own[1], FURTHER[0], FURTHER[1], FURTHER[0], own[0], FURTHER[2]])
    assert again.lines.texts == hearing.lines.texts
    assert torch.equal(again.ensembles["judge"].tastes.line_vectors, hearing.ensembles["judge"].tastes.line_vectors)
    step_by_step = logged.with_lines(FURTHER[:1]).with_lines(FURTHER)
    assert step_by_step.lines.texts == hearing.lines.texts
    assert logged.with_lines(own) is logged
    assert hearing.with_lines(FURTHER) is hearing
    assert hearing.digest == logged.digest
    assert (hearing.lines.vectors[: len(own)] == logged.lines.vectors).all()
    for role in ("train", "judge"):
        for models, n in ((logged.ensembles[role], len(own)), (hearing.ensembles[role], len(own) + 3)):
            vectors = [reader.line_vectors for reader in (*models.models, models.tastes)]
            assert all(part.shape == (n, logged.lines.vectors.shape[1]) for part in vectors)
        assert hearing.world(role).lines == own + FURTHER


@pytest.mark.parametrize(("role", "doubts"), [("train", True), ("judge", False)])
def test_the_logs_own_lines_do_what_they_did_to_the_bit(logged, hearing, role, doubts):
    before, after = (reading(some, some.world(role, doubts)) for some in (logged, hearing))
    assert before.builder.shopper == after.builder.shopper
    one, other = before.arrive(130, seeded(1)), after.arrive(130, seeded(1))
    draws = [seeded(2), seeded(2)]
    for page in range(5):
        decision = shown(one.context, page, EMPTY, len(logged.lines))
        one, was = before.respond(one, decision, draws[0])
        other, now = after.respond(other, decision, draws[1])
        for name, value in vars(was).items():
            if name == "second":
                if doubts:
                    assert torch.equal(value.click_probability, now.second.click_probability)
            else:
                assert torch.equal(value, getattr(now, name)) if value is not None else True, name
        assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())
        for name, value in vars(one.context).items():
            assert torch.equal(value, getattr(other.context, name)), name


def only(ensemble: Ensemble, shoppers: FittedShoppers, texts: tuple[str, ...]) -> Ensemble:
    """The ensemble as if its bank held nothing but these texts."""
    vectors = torch.from_numpy(shoppers.lines.with_texts(texts, HashedEncoder()).scaled)
    ensemble = copy.deepcopy(ensemble)
    for reader in (*ensemble.models, ensemble.tastes):
        reader.line_vectors, reader.logged_lines = vectors, len(vectors)
    return ensemble


def test_a_further_line_does_what_its_words_say(logged, hearing):
    """Against shoppers whose bank is that line alone: in the world, and in what a reader makes of the page."""
    number = len(logged.lines)
    ensemble = only(logged.ensembles["train"], logged, FURTHER)
    fitted = (logged.builder, ensemble, logged.arrivals["train"], logged.size, FURTHER)
    bare = LearnedWorld(*fitted, logged.support)
    alone = ReadWorld(bare, logged.builder, ensemble, REWARD, FURTHER)
    among = reading(hearing, hearing.world("train"))
    start = alone.builder.shopper.numeric.index("history.0")
    history = slice(start, start + sum(name.startswith("history.") for name in alone.builder.shopper.numeric))
    one, other = alone.arrive(200, seeded(3)), among.arrive(200, seeded(3))
    draws = [seeded(4), seeded(4)]
    for page in range(4):
        decision = shown(one.context, page, EMPTY, len(FURTHER))
        moved = decision.copy + number * (decision.copy != EMPTY)
        one, expected = alone.respond(one, decision, draws[0])
        other, found = among.respond(other, dataclasses.replace(decision, copy=moved), draws[1])
        torch.testing.assert_close(found.click_probability, expected.click_probability)
        torch.testing.assert_close(found.conversion_probability, expected.conversion_probability)
        torch.testing.assert_close(
            other.context.shopper[:, history], one.context.shopper[:, history], atol=1e-4, rtol=1e-3
        )
        assert torch.equal(found.clicked, expected.clicked)


def test_a_further_line_is_read_and_not_supported(logged, hearing):
    number, world = len(logged.lines), hearing.world("train", doubts=True)
    read = reading(hearing, world)
    here = read.arrive(200, seeded(5))
    decision = shown(here.context, 6, number, number + len(FURTHER))
    mute = dataclasses.replace(decision, copy=torch.full_like(decision.copy, EMPTY))
    (said, heard), (silent, not_heard) = (read.respond(here, page, seeded(7)) for page in (decision, mute))
    assert (heard.unsupported == 3.0).all()
    assert (not_heard.unsupported < 3.0).all()
    assert ((heard.click_probability - not_heard.click_probability).abs() > 1e-4).float().mean() > 0.95
    assert (said.state["reader.tastes"] != silent.state["reader.tastes"]).any(1).all()


def test_what_cannot_be_heard_is_refused(logged, hearing, shoppers, tmp_path):
    with pytest.raises(InputError, match="have seen no lines of copy"):
        shoppers.with_lines(FURTHER)
    with pytest.raises(ValueError, match="understand none"):
        shoppers.ensembles["train"].with_lines(torch.zeros(1, 1))
    with pytest.raises(InputError, match="a blank line of copy"):
        logged.with_lines(["fine", "  "])
    with pytest.raises(ValueError, match="without further lines"), write_directory(tmp_path / "x", "shoppers") as out:
        hearing.save(out)
    assert not (tmp_path / "x").exists()
