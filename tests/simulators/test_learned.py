"""What is particular to a world of learned shoppers; test_world.py holds what all worlds promise."""

import copy
import dataclasses
import math

import pytest
import torch

from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.simulators.fit import fit
from hawker.simulators.learned import NEVER, LearnedWorld
from hawker.simulators.likelihood import predict_rows
from hawker.simulators.memory import COUNTS
from hawker.simulators.rows import Rows, Timeline
from hawker.simulators.shopper import Ensemble, ShopperModel, calibrated, recalibrated
from hawker.simulators.taste_classes import CLASSES
from hawker.simulators.taste_rows import believed
from hawker.simulators.world import Shoppers


@pytest.fixture
def world(shoppers) -> LearnedWorld:
    return shoppers.world("train")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_shopper_answers_from_their_own_member(world):
    batch = world.arrive(40, seeded(0))
    slate = torch.arange(3).expand(40, 3)
    everyone = world.click_probabilities(batch.context, slate)
    own = world.respond(batch, Decision(slate, torch.zeros(40)), seeded(1))[1].click_probability
    assert everyone.shape == (2, 40, 3)
    for i in range(40):
        torch.testing.assert_close(own[i], everyone[batch.member[i], i])
    assert not torch.isclose(everyone[0], everyone[1]).all()


@pytest.mark.parametrize("n", [2, 3, 101])
def test_members_are_dealt_out_evenly_from_a_random_start(world, n):
    counts = torch.bincount(world.arrive(n, seeded(0)).member, minlength=2)
    assert counts.max() - counts.min() <= 1
    assert {int(world.arrive(1, seeded(seed)).member) for seed in range(10)} == {0, 1}


def test_arrivals_are_the_shoppers_of_the_log(world, shoppers):
    known = {tuple(row) for row in shoppers.builder.from_impressions(shoppers.read_part("train")).shopper.tolist()}
    arrived = {tuple(row) for row in world.arrive(2000, seeded(0)).context.shopper.tolist()}
    assert arrived <= known
    assert len(arrived) > 0.8 * len(known)


def test_affinity_follows_its_item_through_the_candidate_list(world):
    context = world.arrive(6, seeded(0)).context
    context = dataclasses.replace(context, affinity=torch.rand(context.affinity.shape, generator=seeded(1)))
    slate = torch.tensor([[4, 0, 7]]).expand(6, 3)
    expected = world.ensemble(context.shopper, slate, context.affinity[:, [4, 0, 7]])
    torch.testing.assert_close(world.click_probabilities(context, slate), expected)
    few = torch.tensor([7, 4, 0, 11])
    shortened = dataclasses.replace(
        context, candidates=few.expand(6, 4), mask=context.mask[:, few], affinity=context.affinity[:, few]
    )
    torch.testing.assert_close(world.click_probabilities(shortened, slate), expected)


def test_nothing_in_it_learns_any_more(world):
    assert not any(parameter.requires_grad for parameter in world.ensemble.parameters())
    assert not world.ensemble.training


# Doubts


def lived(world: LearnedWorld, pages: int) -> tuple[list[Shoppers], list[Decision], list[Outcome]]:
    """Shoppers of the same draws over some pages, with what they saw and answered."""
    batch, generator = world.arrive(80, seeded(0)), seeded(1)
    batches, decisions, outcomes = [batch], [], []
    for page in range(pages):
        slate = (torch.arange(80)[:, None] + torch.arange(3) + page) % len(world.builder.catalog)
        decisions.append(Decision(slate, torch.zeros(80)))
        batch, outcome = world.respond(batch, decisions[-1], generator)
        batches.append(batch)
        outcomes.append(outcome)
    return batches, decisions, outcomes


def test_doubts_change_no_answer(regulars):
    _, _, sure = lived(regulars[1].world("train"), 4)
    _, _, doubting = lived(regulars[1].world("train", doubts=True), 4)
    for one, other in zip(sure, doubting, strict=True):
        for name, value in vars(one).items():
            if name in ("second", "unsupported"):
                assert value is None
            else:
                assert torch.equal(value, getattr(other, name)), name


def test_a_second_opinion_is_that_of_the_next_member_with_a_memory_of_its_own(regulars):
    fitted = regulars[1]
    world, swapped = fitted.world("train", doubts=True), fitted.world("train")
    batches, decisions, outcomes = lived(world, 4)
    swapped.models.reverse()  # two members: each shopper now lives in the other one
    for before, decision, outcome, after in zip(batches[:-1], decisions, outcomes, batches[1:], strict=True):
        other = dataclasses.replace(before, state=before.state | {"memory": before.state["second"]})
        _, expected = swapped.respond(other, decision, seeded(9))
        assert outcome.second is not None
        for name in ("click_probability", "conversion_probability"):  # what comes later follows from other draws
            torch.testing.assert_close(getattr(outcome.second, name), getattr(expected, name))
        assert not torch.isclose(outcome.second.click_probability, outcome.click_probability).all()
        assert torch.equal(outcome.second.clicked, outcome.clicked)
        assert not torch.equal(after.state["second"], after.state["memory"])


def test_both_opinions_of_one_model_agree_for_good(regulars):
    world = regulars[1].world("train", doubts=True)
    world.models[1] = world.models[0]
    world._seconds = world.models[:]
    batches, _, outcomes = lived(world, 5)
    for outcome in outcomes:
        torch.testing.assert_close(outcome.second.click_probability, outcome.click_probability)
    torch.testing.assert_close(batches[-1].state["second"], batches[-1].state["memory"])


def test_shoppers_without_a_history_give_second_opinions_too(shoppers):
    world = shoppers.world("train", doubts=True)
    batches, decisions, outcomes = lived(world, 1)
    everyone = world.click_probabilities(batches[0].context, decisions[0].slate)
    torch.testing.assert_close(outcomes[0].second.click_probability, everyone[1 - batches[0].member, torch.arange(80)])
    assert outcomes[0].unsupported.shape == (80,)


# Shoppers who leave and come back


@pytest.fixture
def lasting(regulars) -> LearnedWorld:
    """A world fitted on shoppers who came back, with every head."""
    return regulars[1].world("train")


def decisions(context: Context, size: int, seed: int = 0, empty: float = 0.0) -> Decision:
    """Return slates of a context's own candidates with copy, offers and ads."""
    generator, n = seeded(seed), len(context.shopper)
    score = torch.rand(context.mask.shape, generator=generator).masked_fill(~context.mask, -1.0)
    slate = context.candidates.gather(1, score.argsort(1, descending=True)[:, :size])
    slate = slate.masked_fill(torch.rand(n, size, generator=generator) < empty, EMPTY)
    ad, offer = (torch.randint(low, 3, (n,), generator=generator) for low in (-1, 0))
    return Decision(slate, torch.zeros(n), ad, offer, torch.randint(-1, 3, (n, size), generator=generator))


def test_every_head_answers(lasting):
    batch = lasting.arrive(2000, seeded(0))
    decision = decisions(batch.context, 3, empty=0.2)
    _, outcome = lasting.respond(batch, decision, seeded(1))
    shown = decision.slate != EMPTY
    for name in ("clicked", "converted", "revenue", "conversion_probability", "click_probability"):
        assert getattr(outcome, name).shape == (2000, 3), name
        assert not getattr(outcome, name)[~shown].any(), f"{name} of an empty slot"
    assert (outcome.clicked[outcome.converted > 0] == 1).all(), "only what was clicked is bought"
    assert ((outcome.revenue > 0) == (outcome.converted > 0)).all()
    assert 0 < outcome.converted.sum() < outcome.clicked.sum()
    assert outcome.leave.dtype == outcome.gone.dtype == torch.bool
    assert (outcome.days[~outcome.leave] == 0).all()
    assert (outcome.gone == (outcome.leave & outcome.days.isinf())).all()
    came = outcome.days[outcome.leave & ~outcome.gone]
    assert ((came >= 0) & (came <= NEVER) & (came == came.floor())).all()
    assert 0 < outcome.leave.sum() < 2000


def test_purchases_and_leaving_come_as_often_as_their_probability_says(lasting):
    one = lasting.arrive(1, seeded(0))
    many = Shoppers(
        one.context.map(lambda array: array.expand(20_000, -1)),
        one.member.expand(20_000),
        {name: array.expand(20_000, *array.shape[1:]) for name, array in one.state.items()},
    )
    page = decisions(one.context, 3)
    parts = (page.slate, page.log_prob, page.ad, page.offer, page.copy)
    decision = Decision(*(part.expand(20_000, *part.shape[1:]) for part in parts))
    _, outcome = lasting.respond(many, decision, seeded(1))
    assert len(outcome.conversion_probability.unique(dim=0)) == 1
    clicks = outcome.clicked.sum(0)
    for k in range(3):
        p = float(outcome.conversion_probability[0, k])
        error = math.sqrt(p * (1 - p) / float(clicks[k]))
        assert float(outcome.converted[:, k].sum() / clicks[k]) == pytest.approx(p, abs=4 * error)


def test_a_visit_goes_on_or_ends(lasting):
    calibration = lasting.ensemble.calibration.clone()
    calibration[3, 0] -= 4.0  # so that some never come back
    context = lasting.arrive(500, seeded(8)).context
    lasting = LearnedWorld(lasting.builder, Ensemble(lasting.ensemble.models, calibration), context, 3)
    batch = lasting.arrive(3000, seeded(0))
    assert batch.state["number"].tolist() == batch.state["gap"].tolist() == [0.0] * 3000
    number, seen = batch.state["number"], {"stays": 0, "returns": 0, "gone": 0}
    for step in range(6):
        after, outcome = lasting.respond(batch, decisions(batch.context, 3, step), seeded(step))
        stays = ~outcome.leave
        assert torch.equal(after.state["number"], torch.where(stays, number + 1, 0.0))
        assert torch.equal(after.state["gap"][~outcome.gone], outcome.days[~outcome.gone]), "0 within a visit"
        assert torch.isfinite(after.state["memory"]).all()
        assert torch.equal(after.member, batch.member), "one shopper lives in one member for good"
        assert torch.equal(after.context.shopper, batch.context.shopper)
        seen["stays"] += int((stays & (number > 0)).sum())
        seen["returns"] += int((outcome.leave & ~outcome.gone).sum())
        seen["gone"] += int(outcome.gone.sum())
        fresh = lasting.arrive(3000, seeded(100 + step))
        batch = after.replaced(outcome.gone, fresh)
        number = batch.state["number"]
        assert not number[outcome.gone].any(), "who replaces a shopper starts anew"
    assert min(seen.values()) > 100


def test_candidates_are_drawn_anew_for_a_new_visit_alone(lasting):
    batch = lasting.arrive(2000, seeded(0))
    after, outcome = lasting.respond(batch, decisions(batch.context, 3), seeded(1))
    stays = ~outcome.leave
    assert torch.equal(after.context.candidates[stays], batch.context.candidates[stays])
    assert torch.equal(after.context.mask[stays], batch.context.mask[stays])
    other = (after.context.candidates != batch.context.candidates).any(1)[outcome.leave]
    assert other.float().mean() > 0.9
    logged = {tuple(row) for row in lasting.arrive(5000, seeded(9)).context.candidates.tolist()}
    assert {tuple(row) for row in after.context.candidates.tolist()} <= logged


def test_a_world_without_candidates_keeps_the_whole_catalog(journeys, write_logs, fast, tmp_path):
    fitted = fit(write_logs(tmp_path / "logs", journeys[:2]), tmp_path / "out", fast, lambda line: None)[0]
    world = fitted.world("train")
    batch = world.arrive(100, seeded(0))
    assert batch.context.candidates.shape == (100, 20)
    after, outcome = world.respond(batch, decisions(batch.context, 3), seeded(1))
    assert outcome.leave.any()
    assert torch.equal(after.context.candidates, batch.context.candidates)


def test_a_world_remembers_as_its_models_were_taught(lasting):
    """Played page by page, the state is what the models make of the same history at once, within whatever range."""
    models = [unbounded(model) for model in lasting.ensemble.models]
    tastes = lasting.ensemble.tastes
    ensemble = Ensemble(models, lasting.ensemble.calibration, tastes)
    lasting = LearnedWorld(lasting.builder, ensemble, lasting.arrive(500, seeded(9)).context, 3, lasting.lines)
    n, steps = 60, 7
    batch, pages = lasting.arrive(n, seeded(0)), []
    for step in range(steps):
        decision = decisions(batch.context, 3, step, empty=0.1)
        before = batch
        batch, outcome = lasting.respond(batch, decision, seeded(50 + step))
        pages.append((before, decision, outcome, batch))
    for i, model in enumerate(lasting.ensemble.models):
        own = (pages[0][0].member == i).nonzero().flatten()
        history = [(batch, decision, outcome) for batch, decision, outcome, _ in pages]

        def laid(pick, own=own, history=history):
            """Gather something of every page, shopper by shopper: (shoppers x steps, ...)."""
            return torch.stack([pick(*page)[own] for page in history], 1).flatten(0, 1)

        count = len(own) * steps
        slots = torch.arange(3).expand(count, 3).flatten()
        ad = laid(lambda b, d, o: (d.ad[:, None] == torch.arange(3)).float()).flatten()
        rows = Rows(
            shopper=laid(lambda b, d, o: b.context.shopper),
            page=torch.arange(count).repeat_interleave(3),
            item=laid(lambda b, d, o: d.slate).flatten(),
            position=slots,
            affinity=torch.zeros(count * 3),
            clicked=laid(lambda b, d, o: o.clicked).flatten(),
            converted=laid(lambda b, d, o: o.converted).flatten(),
            revenue=laid(lambda b, d, o: o.revenue).flatten(),
            line=laid(lambda b, d, o: d.copy).flatten(),
            offer=laid(lambda b, d, o: d.offer).repeat_interleave(3),
            ad=ad,
        )
        lived_in = torch.nn.functional.one_hot(laid(lambda b, d, o: b.state["class"]), CLASSES).float()
        rows = dataclasses.replace(rows, believed=believed(tastes, lived_in, rows))
        time = Timeline(
            torch.arange(len(own) + 1) * steps,
            laid(lambda b, d, o: b.state["gap"]),
            laid(lambda b, d, o: b.state["number"]),
            *torch.zeros(3, count),
        )
        said = predict_rows(model, dataclasses.replace(rows, time=time))
        click = calibrated(said.click.exp(), lasting.ensemble.calibration[0]).reshape(-1, 3)
        shown = rows.item.reshape(-1, 3) != EMPTY
        expected = laid(lambda b, d, o: o.click_probability)
        torch.testing.assert_close(click[shown], expected[shown], atol=1e-5, rtol=1e-4)
        _, state = model.memory.run(model.scaled(rows.shopper), model.summary(rows), time)
        last, counts = (pages[-1][3].state[name][own] for name in ("memory", "counts"))
        width, expected = state.shape[1] - COUNTS, state[steps - 1 :: steps]
        found = torch.cat([last[:, :width], counts], 1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert not last[:, width:].any()


def unbounded(model: ShopperModel) -> ShopperModel:
    """A copy of a model whose memory has no range."""
    free = copy.deepcopy(model)
    for name, bound in {"lowest": -torch.inf, "least": -torch.inf, "highest": torch.inf, "most": torch.inf}.items():
        getattr(free.memory, name).fill_(bound)
    return free


def test_a_memory_stays_within_what_the_log_has_shown(lasting):
    """Shoppers who see many more pages than the log's would leave its range otherwise."""
    free = Ensemble([unbounded(model) for model in lasting.ensemble.models], lasting.ensemble.calibration)
    context = lasting.arrive(500, seeded(9)).context
    beyond = []
    for ensemble in (lasting.ensemble, free):
        world = LearnedWorld(lasting.builder, ensemble, context, 3, lasting.lines)
        batch, outside = world.arrive(60, seeded(0)), torch.zeros(2, 2)
        for step in range(30):
            batch, outcome = world.respond(batch, decisions(batch.context, 3, step), seeded(50 + step))
            ends = outcome.leave_probability.logit()
            for i, model in enumerate(lasting.ensemble.models):  # of either world, by the log's range
                memory = model.memory
                assert (memory.lowest < memory.highest).any()
                sums = batch.state["memory"][batch.member == i, memory.width : memory.width + memory.sums]
                outside[0, i] += ((sums < memory.lowest) | (sums > memory.highest)).sum()
                own = ends[batch.member == i]
                least, most = recalibrated(torch.stack([memory.least[0], memory.most[0]]), ensemble.calibration[2])
                outside[1, i] += ((own < least - 1e-4) | (own > most + 1e-4)).sum()
        beyond.append(outside)
    assert not beyond[0].any()
    assert (beyond[1] > 0).all()


def test_leaving_comes_as_often_as_its_probability_says(lasting):
    batch, left, expected, spread = lasting.arrive(4000, seeded(0)), 0.0, 0.0, 0.0
    for step in range(3):
        after, outcome = lasting.respond(batch, decisions(batch.context, 3, step), seeded(step))
        p = outcome.leave_probability
        assert p.shape == (4000,)
        assert ((p > 0) & (p <= 1)).all()
        left, expected = left + float(outcome.leave.sum()), expected + float(p.sum())
        spread += float((p * (1 - p)).sum())
        batch = after.replaced(outcome.gone, lasting.arrive(4000, seeded(100 + step)))
    assert left == pytest.approx(expected, abs=4 * math.sqrt(spread))


def test_a_visit_ends_with_as_many_pages_as_the_longest_of_the_log(lasting, regulars):
    support = dataclasses.replace(regulars[1].support, visit=torch.tensor(3.0))
    calibration = lasting.ensemble.calibration.clone()
    calibration[2, 0] -= 6.0  # nobody leaves before they have to
    ensemble, context = Ensemble(lasting.ensemble.models, calibration), lasting.arrive(500, seeded(9)).context
    world = LearnedWorld(lasting.builder, ensemble, context, 3, lasting.lines, support)
    batch = world.arrive(300, seeded(0))
    for step in range(7):
        last = batch.state["number"] == 2
        after, outcome = world.respond(batch, decisions(batch.context, 3, step), seeded(step))
        assert (outcome.leave_probability[last] == 1).all()
        assert outcome.leave[last].all()
        assert (outcome.leave_probability[~last] < 0.9).all()
        assert last.float().mean() > 0.5 or step % 3 != 2
        batch = after
    free = LearnedWorld(lasting.builder, ensemble, context, 3, lasting.lines)
    assert (
        free.respond(
            dataclasses.replace(batch, state=batch.state | {"number": torch.full((300,), 2.0)}),
            decisions(batch.context, 3),
            seeded(0),
        )[1].leave_probability
        < 0.9
    ).all()


def test_members_answer_apart(lasting):
    """What one member's shoppers see and do says nothing to another member's."""
    batch = lasting.arrive(40, seeded(0))
    decision = decisions(batch.context, 3)
    after, outcome = lasting.respond(batch, decision, seeded(1))
    theirs = batch.member == 1
    slate = torch.where(theirs[:, None], decision.slate.flip(1), decision.slate)
    after_now, outcome_now = lasting.respond(batch, dataclasses.replace(decision, slate=slate), seeded(1))
    for name in ("clicked", "click_probability", "converted", "revenue", "leave", "days"):
        assert torch.equal(getattr(outcome, name)[~theirs], getattr(outcome_now, name)[~theirs]), name
    assert torch.equal(after.state["memory"][~theirs], after_now.state["memory"][~theirs])
    assert not torch.equal(after.state["memory"][theirs], after_now.state["memory"][theirs])


def test_a_calibration_moves_every_head(lasting):
    shift = {0: "click_probability", 1: "conversion_probability", 2: "leave", 3: "days"}
    batch = lasting.arrive(4000, seeded(0))
    decision = decisions(batch.context, 3)

    def answer(calibration: torch.Tensor) -> dict[str, float]:
        world = LearnedWorld(lasting.builder, Ensemble(lasting.ensemble.models, calibration), batch.context, 3)
        outcome = world.respond(batch, decision, seeded(1))[1]
        found = {name: float(getattr(outcome, name).float().mean()) for name in list(shift.values())[:3]}
        return found | {"days": float(outcome.days.clamp(max=NEVER)[outcome.leave].mean())}

    plain = lasting.ensemble.calibration
    base = answer(plain)
    for head, name in shift.items():
        moved = plain.clone()
        moved[head, 0] += 1.0
        now = answer(moved)
        assert (now[name] < base[name]) if name == "days" else (now[name] > base[name]), name
        others = set(shift.values()) - {name} - ({"leave", "days"} if head < 2 else {"days"})
        assert all(now[other] == base[other] for other in others)


@pytest.mark.usefixtures("nothing_global")
def test_a_journey_is_the_same_for_the_same_seed(lasting):
    def play(seed: int) -> list[torch.Tensor]:
        generator = seeded(seed)
        batch, told = lasting.arrive(50, generator), []
        for step in range(5):
            batch, outcome = lasting.respond(batch, decisions(batch.context, 3, step), generator)
            told += [outcome.clicked, outcome.days, batch.state["memory"]]
            batch = batch.replaced(outcome.gone, lasting.arrive(50, generator))
        return told

    one, two, other = play(3), play(3), play(4)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[-1], other[-1])


def test_single_impressions_leave_no_trace(world):
    """As before there was a state: one page, then the shopper is gone."""
    batch = world.arrive(20, seeded(0))
    after, outcome = world.respond(batch, Decision(torch.arange(3).expand(20, 3), torch.zeros(20)), seeded(1))
    assert after is batch
    assert batch.state == {}
    assert outcome.gone.all()
    absent = (outcome.converted, outcome.revenue, outcome.conversion_probability, outcome.leave, outcome.days)
    assert absent == (None,) * 5


def test_a_return_within_a_week_is_as_likely_as_it_is_often(lasting):
    one = lasting.arrive(1, seeded(0))
    many = Shoppers(
        one.context.map(lambda array: array.expand(40_000, -1)),
        one.member.expand(40_000),
        {name: array.expand(40_000, *array.shape[1:]) for name, array in one.state.items()},
    )
    slate = decisions(one.context, 3).slate.expand(40_000, -1)
    _, outcome = lasting.respond(many, Decision(slate, torch.zeros(40_000)), seeded(1))
    assert outcome.return_probability.shape == (40_000,)
    assert ((outcome.return_probability > 0) & (outcome.return_probability < 1)).all()
    left = outcome.leave
    count, p = int(left.sum()), float(outcome.return_probability[left].mean())
    came = float((outcome.days[left] <= 7).float().mean())
    assert came == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / count))


def test_what_a_shop_offers_is_told(lasting, regulars, world):
    assert lasting.offers == 3
    assert lasting.lines == regulars[1].lines.texts == ("big sale today", "last ones left", "made by hand")
    assert lasting.bids.tolist() == [0.0] * 20, "the catalog has no bids"
    assert (world.offers, world.lines) == (1, ())


def test_a_catalogs_bids_are_the_worlds(world):
    catalog = world.builder.catalog
    schema = dataclasses.replace(catalog.features, numeric=("bid", *catalog.features.numeric[1:]))
    builder = dataclasses.replace(world.builder, catalog=dataclasses.replace(catalog, features=schema))
    bids = LearnedWorld(builder, world.ensemble, world.arrive(9, seeded(0)).context, 3).bids
    assert bids.tolist() == catalog.vectors[:, 0].tolist()


def test_who_replaces_a_shopper_lives_in_the_member_of_the_place(lasting):
    batch = lasting.arrive(200, seeded(0))
    assert batch.placed
    assert batch.member.tolist() == [0] * 100 + [1] * 100
    fresh = lasting.arrive(200, seeded(1)).take(torch.arange(200).flip(0))
    assert not fresh.placed
    gone = torch.rand(200, generator=seeded(2)) < 0.5
    merged = batch.replaced(gone, fresh)
    assert merged.member is batch.member
    assert torch.equal(merged.context.shopper[gone], fresh.context.shopper[gone])
    small = lasting.arrive(3, seeded(3)).replaced(torch.tensor([True, False, True]), fresh.take(torch.arange(3)))
    assert small.member[[0, 2]].tolist() == fresh.member[[0, 2]].tolist()


def test_parts_that_were_not_decided_are_as_none(lasting):
    batch = lasting.arrive(100, seeded(0))
    decision = decisions(batch.context, 3)
    bare = Decision(decision.slate, decision.log_prob)
    nothing = torch.zeros(100, dtype=torch.long)
    none = Decision(decision.slate, decision.log_prob, nothing - 1, nothing, torch.full((100, 3), -1))
    one, other, full = (lasting.respond(batch, d, seeded(1))[1].click_probability for d in (bare, none, decision))
    assert torch.equal(one, other)
    assert not torch.equal(one, full)


def test_an_offer_above_the_known_tiers_counts_as_the_largest(lasting):
    batch = lasting.arrive(100, seeded(0))
    page = decisions(batch.context, 3)
    assert lasting.ensemble.models[0].recorded.offers == 3
    answers = [
        lasting.respond(batch, dataclasses.replace(page, offer=torch.full((100,), tier)), seeded(1)) for tier in (2, 9)
    ]
    (known, one), (unknown, two) = answers
    assert torch.equal(one.click_probability, two.click_probability)
    assert torch.equal(one.revenue, two.revenue)
    assert torch.equal(known.state["memory"], unknown.state["memory"])
