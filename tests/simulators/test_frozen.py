"""Frozen models answer as `hawker.simulators.shopper` says; kept here is how they were asked before there were any."""

import dataclasses

import pytest
import torch

from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.simulators import frozen, learned
from hawker.simulators.learned import LearnedWorld, draw_days
from hawker.simulators.memory import COUNTS, clock_of
from hawker.simulators.pages import shown_rows
from hawker.simulators.shopper import ShopperModel, calibrated
from hawker.simulators.taste_classes import TasteClasses
from hawker.simulators.world import Shoppers


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decisions(context: Context, size: int, seed: int) -> Decision:
    """Return slates of a context's own candidates, some slots empty, with copy, offers and ads."""
    generator, n = seeded(seed), len(context.shopper)
    score = torch.rand(context.mask.shape, generator=generator).masked_fill(~context.mask, -1.0)
    slate = context.candidates.gather(1, score.argsort(1, descending=True)[:, :size])
    slate = slate.masked_fill(torch.rand(n, size, generator=generator) < 0.1, EMPTY)
    ad, offer = (torch.randint(low, 3, (n,), generator=generator) for low in (-1, 0))
    return Decision(slate, torch.zeros(n), ad, offer, torch.randint(-1, 3, (n, size), generator=generator))


def of(decision: Decision, own: torch.Tensor) -> Decision:
    parts = (getattr(decision, name) for name in ("slate", "log_prob", "ad", "offer", "copy"))
    return Decision(*(None if part is None else part[own] for part in parts))


def oracle(
    model: ShopperModel,
    tastes: TasteClasses | None,
    calibration: torch.Tensor,
    own: Shoppers,
    decision: Decision,
    draws: list[torch.Tensor],
    longest: float,
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Answer the pages of one member's shoppers step by step; return the outcome's parts and the whole memory."""
    slate, shown = decision.slate, decision.slate != EMPTY
    rows = shown_rows(model, own.context, decision)
    if tastes is not None:
        parts = (rows.item.clamp(min=0), rows.line, rows.offer, rows.ad)
        by_class = tastes.log_odds(tastes.utilities(), tastes.scaled(rows.shopper)[rows.page], parts)
        lived_in = own.state["class"][rows.page, None]
        said = [odds.gather(1, lived_in).squeeze(1) for odds in by_class]
        said = [said[0] - tastes.click.base, said[1] - tastes.purchase.base]
        rows = dataclasses.replace(rows, believed=torch.stack(said, 1))
    carried = state = None
    if model.memory is not None:
        carried = torch.cat([own.state["memory"][:, : model.memory.hidden - COUNTS], own.state["counts"]], 1)
        new = own.state["counts"][:, 2:] == 0
        carried = torch.where(new, model.memory.start(model.scaled(own.context.shopper)), carried)
        state = model.memory.before(carried, clock_of(own.state["gap"], own.state["number"]))
    person = model.person(own.context.shopper, state)
    liked = model.log_odds(person, rows)
    click = calibrated(model.log_click(liked, rows).exp(), calibration[0]).reshape(slate.shape) * shown
    clicked = (draws[0] < click).float()
    found = {"click_probability": click, "clicked": clicked}
    # Log-odds of a probability next to 1 are rounded before they are calibrated.
    found["rounded"] = (model.log_click(liked, rows).exp() > 0.99).reshape(slate.shape)
    if model.conversion is not None:
        odds = model.conversion_odds(person, rows, liked).sigmoid()
        conversion = calibrated(odds, calibration[1]).reshape(slate.shape) * shown
        found["rounded"] = found["rounded"] | (odds > 0.99).reshape(slate.shape)
        found |= {"conversion_probability": conversion, "converted": clicked * (draws[1] < conversion).float()}
    if model.recorded.revenue:
        worth = (model.log_amount(rows) + (2 * model.amount_spread).exp() / 2).exp()
        found["revenue"] = found["converted"] * worth.reshape(slate.shape)
    if carried is None:
        return found, None
    came = {name: found[name].flatten() for name in ("clicked", "converted", "revenue") if name in found}
    summary = model.summary(dataclasses.replace(rows, **came))
    memory = model.memory.after(carried, own.state["gap"], own.state["number"], summary)
    least, most = model.memory.least, model.memory.most
    ends = model.leave_odds(memory, own.state["number"]).clamp(least[0], most[0])
    ends = calibrated(ends.sigmoid(), calibration[2])
    ends = ends.masked_fill(own.state["number"] + 1 >= longest, 1.0)
    leave = draws[2][:, 0] < ends
    hazard = calibrated(model.return_odds(memory).clamp(least[1:], most[1:]).sigmoid(), calibration[3])
    found |= {"leave": leave, "days": torch.where(leave, draw_days(hazard, draws[3][:, 0]), 0.0)}
    found["leave_probability"] = ends
    return found | {"return_probability": 1 - (1 - hazard[:, :8]).prod(1)}, memory


def differences(world: LearnedWorld, batch: Shoppers, decision: Decision, seed: int) -> tuple[Shoppers, Outcome]:
    """Answer a page, hold every member's answers against the oracle's, and return them."""
    n, size = decision.slate.shape
    draws = torch.rand(n, 2 * size + 3, generator=seeded(seed)).split([size, size, 1, 1, 1], 1)
    clicks, purchases, moves, leaves, days = draws
    after, outcome = world.respond(batch, decision, seeded(seed))
    for i, model in enumerate(world.ensemble.models):
        own = (batch.member == i).nonzero().squeeze(1)
        if not len(own):
            continue
        calibration, tastes = world.ensemble.calibration, world.ensemble.tastes
        drawn = [part[own] for part in (clicks, purchases, leaves, days)]
        found, memory = oracle(model, tastes, calibration, batch.take(own), of(decision, own), drawn, world._longest)
        same = torch.ones(len(own), dtype=torch.bool)
        for name in ("clicked", "converted", "leave", "days"):
            if name in found:
                equal = getattr(outcome, name)[own] == found[name]
                assert equal.float().mean() > 0.999, f"{name}: a draw next to its probability may go either way"
                same &= equal.reshape(len(own), -1).all(1)
        told = ("click_probability", "conversion_probability", "leave_probability", "return_probability", "revenue")
        for name in told:
            if name in found:
                told_so, expected = getattr(outcome, name)[own][same], found[name][same]
                if expected.ndim == 2:
                    rounded = found["rounded"][same]
                    torch.testing.assert_close(told_so[rounded], expected[rounded], atol=1e-5, rtol=1e-3)
                    told_so, expected = told_so[~rounded], expected[~rounded]
                    assert len(expected) > 0.5 * rounded.numel(), "most of them are held to more"
                torch.testing.assert_close(told_so, expected, atol=1e-6, rtol=1e-5)
        if memory is not None:
            width = memory.shape[1] - COUNTS
            state = torch.cat([after.state["memory"][own, :width], after.state["counts"][own]], 1)
            torch.testing.assert_close(state[same], memory[same], atol=2e-5, rtol=1e-4)
            assert not after.state["memory"][own, width:].any()
            chance = tastes.switch.sigmoid()
            moved = (tastes.share.softmax(0).cumsum(0) <= moves[own] / chance).sum(1)
            moved = torch.where(outcome.leave[own] & (moves[own, 0] < chance), moved, batch.state["class"][own])
            assert torch.equal(after.state["class"][own], moved)
    return after, outcome


WHOLE = {"ad", "offer", "copy"}


@pytest.mark.parametrize("role", ["train", "judge"])
@pytest.mark.parametrize("parts", [WHOLE, WHOLE - {"copy"}, {"copy"}, set()], ids=["whole", "silent", "copy", "slate"])
def test_every_answer_is_the_models(regulars, role, parts):
    world = regulars[1].world(role)
    batch = world.arrive(700, seeded(0))
    for step in range(4):
        decision = decisions(batch.context, 3, step)
        decision = dataclasses.replace(decision, **dict.fromkeys(WHOLE - parts))
        after, outcome = differences(world, batch, decision, 50 + step)
        batch = after.replaced(
            outcome.gone | (torch.rand(700, generator=seeded(step)) < 0.2), world.arrive(700, seeded(100 + step))
        )


def test_shoppers_who_do_not_lie_by_place_are_answered_alike(regulars):
    world = regulars[1].world("train")
    batch = world.arrive(300, seeded(0))
    for step, order in enumerate((torch.randperm(300, generator=seeded(1))[:150], torch.arange(40), torch.arange(1))):
        batch = batch.take(order)
        assert not batch.placed
        batch, _ = differences(world, batch, decisions(batch.context, 3, step), step)


def test_single_impressions_are_answered_alike(shoppers):
    for role in ("train", "judge"):
        world = shoppers.world(role)
        batch = world.arrive(500, seeded(0))
        context = dataclasses.replace(
            batch.context, affinity=torch.rand(batch.context.affinity.shape, generator=seeded(3))
        )
        for affine in (batch, dataclasses.replace(batch, context=context)):
            told = LearnedWorld(world.builder, world.ensemble, affine.context, 3)
            differences(told, affine, decisions(affine.context, 3, 1), 2)


def test_a_large_catalog_needs_no_table_of_pairs(regulars, monkeypatch):
    monkeypatch.setattr(frozen, "PAIRS", 0)
    world = regulars[1].world("train")
    batch = world.arrive(200, seeded(0))
    differences(world, batch, decisions(batch.context, 3, 0), 1)


def test_blocks_are_answered_as_the_whole(regulars, monkeypatch):
    monkeypatch.setattr(learned, "CHUNK", 16)
    world = regulars[1].world("train")
    batch = world.arrive(333, seeded(0))
    decision = decisions(batch.context, 3, 0)
    _, whole = world.respond(dataclasses.replace(batch, placed=False), decision, seeded(1))
    assert batch.placed
    after, parts = world.respond(batch, decision, seeded(1))
    assert after.placed
    torch.testing.assert_close(whole.click_probability, parts.click_probability)
    assert torch.equal(whole.clicked, parts.clicked)


def test_nothing_that_was_answered_is_in_the_way_of_learning(regulars):
    """Tensors made in inference mode could not be saved for a gradient."""
    world = regulars[1].world("train")
    batch = world.arrive(100, seeded(0))
    after, outcome = world.respond(batch, decisions(batch.context, 3, 0), seeded(1))
    tensors = [*vars(outcome).values(), *vars(after.context).values(), *after.state.values()]
    assert not any(tensor.is_inference() for tensor in tensors if tensor is not None)


def test_a_step_never_waits_for_the_device(regulars, never_waiting):
    world, generator = regulars[1].world("train"), seeded(0)
    batch = world.arrive(100, generator)
    decision = decisions(batch.context, 3, 0)
    world.respond(batch, decision, generator)
    with never_waiting():
        after, outcome = world.respond(batch, decision, generator)
        world.respond(after.replaced(outcome.gone, world.arrive(100, generator)), decision, generator)
    with pytest.raises(AssertionError, match="moves data"), never_waiting():
        world.respond(batch.take(torch.arange(100)), decision, generator)
