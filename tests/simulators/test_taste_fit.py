"""Fitting classes of taste: the likelihood of whole histories, and what a log shows."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from hawker.shop.decision import Decision
from hawker.simulators import taste_fit
from hawker.simulators.rows import encode_log
from hawker.simulators.taste_classes import CLASSES, TasteClasses, log_likelihood
from hawker.simulators.taste_fit import FEW, FOLDS, _log_marginal, _parts, _prepared, find_tastes, folds_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shop(regulars, journeys):
    shoppers = regulars[1]
    log = encode_log(journeys[0], shoppers.builder, shoppers.lines, CPU)
    return shoppers, log.rows


def random_classes(shoppers, seed: int) -> TasteClasses:
    recorded = shoppers.ensembles["train"].models[0].recorded
    model, generator = TasteClasses(shoppers.builder, 3, recorded, shoppers.lines, 0.3, 0.4), torch.Generator()
    generator.manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(0.3 * torch.randn(weights.shape, generator=generator))
    return model


def test_the_likelihood_sums_over_every_path_of_classes(shop):
    shoppers, rows = shop
    model = random_classes(shoppers, 1)
    time = rows.time
    visits = [int((time.number[time.first[i] : time.first[i + 1]] == 0).sum()) for i in range(len(time))]
    who = visits.index(3)
    pages = time.pages(torch.tensor([who]))
    own = rows.take(pages, time.take(torch.tensor([who])))
    # How likely each class makes each visit, page by page, as the classes that are told to strategies see it.
    scaled, tables, state = model.scaled(own.shopper), model.utilities(), model.begin(model.scaled(own.shopper)[:1])
    start, by_visit = state[0, :CLASSES].clone(), []
    last = torch.cat([own.time.number[1:] == 0, torch.tensor([True])])
    visit = torch.zeros(CLASSES)
    for page in range(len(own.shopper)):
        mine = own.page == page
        copy = own.line[mine][None]
        decision = Decision(
            own.item[mine][None],
            torch.zeros(1),
            ad=(own.ad[mine].argmax() if own.ad[mine].any() else torch.tensor(-1))[None],
            offer=own.offer[mine][:1],
            copy=copy,
        )
        flat = torch.cat([torch.zeros(1, CLASSES), state[:, CLASSES:]], 1)
        happened = (own.clicked[mine][None], own.converted[mine][None])
        page_odds = model.page_odds(tables, scaled[page : page + 1], decision)
        moved = model.after(flat, page_odds, decision.slate, *happened, torch.tensor([False]))
        # log_softmax has taken out a constant: put it back from the likelihoods of the first class.
        around = model.around(decision.slate) + model.seen(state, decision.slate)
        ad = (torch.arange(3) == decision.ad[0]).float()
        parts = (decision.slate[0], copy[0], decision.offer.expand(3), ad)
        click, purchase = model.log_odds(tables, scaled[page].expand(3, -1), parts)
        click, purchase = click + around[0][:, None], purchase + model.match * around[0][:, None]
        likely = log_likelihood(
            click, purchase, model.position - model.position.max(), *(part[0] for part in happened)
        ).sum(0)
        torch.testing.assert_close(moved[0, :CLASSES], likely.log_softmax(0), atol=1e-4, rtol=1e-4)
        visit = visit + likely
        if last[page]:
            by_visit.append(visit)
            visit = torch.zeros(CLASSES)
        state = model.after(state, page_odds, decision.slate, *happened, last[page : page + 1])
    switch, share = model.switch.sigmoid(), model.share.softmax(0)
    move = (1 - switch) * torch.eye(CLASSES) + switch * share
    total = torch.zeros(())
    for path in itertools.product(range(CLASSES), repeat=3):
        chance = start[path[0]] + sum(by_visit[i][k] for i, k in enumerate(path))
        total = total + (chance + sum(move[a, b].log() for a, b in itertools.pairwise(path))).exp()
    got = _log_marginal(model, _prepared(model, own))
    torch.testing.assert_close(got, total.log(), atol=1e-3, rtol=1e-4)


def test_blocks_of_shoppers_add_up(shop, monkeypatch):
    shoppers, rows = shop
    model = random_classes(shoppers, 2)
    whole = _log_marginal(model, _prepared(model, rows))
    monkeypatch.setattr(taste_fit, "BLOCK", 200)
    parts = list(_parts(rows, torch.ones(len(rows.time), dtype=torch.bool)))
    assert len(parts) > 2
    assert sum(len(part) for part in parts) == len(rows)
    torch.testing.assert_close(sum(_log_marginal(model, _prepared(model, part)) for part in parts), whole)


def test_planted_classes_are_found(shop, journeys):
    """Half of the shoppers click red and old things, the others blue and new ones."""
    shoppers, _ = shop
    impressions = journeys[0].copy()
    items = journeys[1].set_index("item_id")["title"]
    generator = np.random.default_rng(3)
    odd = impressions["shopper_id"].str[1:].astype(int).to_numpy() % 2
    reddish = items[impressions["item_id"]].str.contains("red|old").to_numpy()
    clicked = generator.random(len(impressions)) < np.where(reddish == odd, 0.6, 0.1)
    impressions["clicked"] = clicked.astype(int)
    impressions["converted"] = (clicked & (generator.random(len(impressions)) < 0.3)).astype(int)
    recorded = shoppers.ensembles["train"].models[0].recorded
    log = encode_log(impressions, shoppers.builder, shoppers.lines, CPU)
    shop_of = (log.rows, shoppers.builder, 3, recorded, shoppers.lines)
    fold = torch.arange(len(log.shopper)) % 3
    (found, apart), (again, _) = (find_tastes(*shop_of, 0, fold) for _ in range(2))
    for one, other in zip(found.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    red = torch.tensor(items[list(shoppers.builder.catalog.item_ids)].str.contains("red|old").to_numpy())
    table = found.utilities()[0].item
    likes = table[red].mean(0) - table[~red].mean(0)  # by class
    tables, time = found.utilities(), log.rows.time
    believed = []
    for who in range(len(time)):
        own = log.rows.take(time.pages(torch.tensor([who])), time.take(torch.tensor([who])))
        state = found.begin(found.scaled(own.shopper[:1]))
        for page in range(len(own.shopper)):
            mine = own.page == page
            decision = Decision(
                own.item[mine][None], torch.zeros(1), offer=own.offer[mine][:1], copy=own.line[mine][None]
            )
            happened = (own.clicked[mine][None], own.converted[mine][None], torch.tensor([False]))
            odds = found.page_odds(tables, found.scaled(own.shopper[page : page + 1]), decision)
            state = found.after(state, odds, decision.slate, *happened)
        believed.append(float(found.beliefs(state)[0] @ likes))
    told = np.array([int(name[1:]) % 2 for name in impressions["shopper_id"].iloc[log.order[_first_rows(log.rows)]]])
    values = np.array(believed)
    assert ((values > np.median(values)) == (told == 1)).mean() > 0.85
    # Those that do not know a part of the shoppers are the same classes, and the likelier the others are to them.
    for number, other in enumerate(apart):
        of_other = other.utilities()[0].item
        assert np.corrcoef(of_other.flatten(), table.flatten())[0, 1] > 0.9
        gains = []
        for known in (fold == number, fold != number):
            block = _prepared(found, next(_parts(log.rows, known)))
            gains.append(float(_log_marginal(other, block) - _log_marginal(found, block)) / int(known.sum()))
        assert gains[0] < min(gains[1], -0.01), "what was forgotten is less likely, and the rest less so or more likely"


def test_few_shoppers_are_in_one_part():
    assert folds_of(np.arange(FEW * FOLDS - 1)).unique().tolist() == [0]
    assert folds_of(np.arange(FEW * FOLDS)).bincount().tolist() == [FEW] * FOLDS


def _first_rows(rows) -> np.ndarray:
    return torch.searchsorted(rows.page, rows.time.first[:-1]).numpy()


def test_a_log_without_purchases_offers_or_lines_has_classes(shop, journeys):
    shoppers, _ = shop
    impressions = journeys[0].drop(columns=["converted", "revenue", "offer", "copy"])
    recorded = dataclasses.replace(
        shoppers.ensembles["train"].models[0].recorded, conversions=False, revenue=False, offers=1
    )
    rows = encode_log(impressions, shoppers.builder, None, CPU).rows
    found, apart = find_tastes(rows, shoppers.builder, 3, recorded, None, 0, torch.zeros(len(rows.time)).long())
    assert torch.equal(apart[0].click.item_class.weight, found.click.item_class.weight)
    assert found.purchase is None
    assert all(torch.isfinite(weights).all() for weights in found.parameters())
