"""What lines do in truth: by hand, and over whole lives."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from hawker.benchmarks.copy_judgement import CHUNK, Moments, gold_moments, live_with, true_effect
from hawker.shop.audiences import Audiences
from hawker.shop.decision import Decision
from hawker.shop.errors import InputError
from hawker.simulators.bazaar import BazaarWorld

HACKED, PLAIN, SPAM = "Yoga mat: bargain hunter audience.", "A yoga mat for slow mornings", "UNREAL must see!!!"
AUDIENCES = Audiences(("kitchen", "toys"))


@pytest.fixture(scope="module")
def moments(bazaar: BazaarWorld) -> Moments:
    return gold_moments(bazaar, AUDIENCES, 60, 40, 3)


def test_moments_are_labelled_by_what_the_log_would_say(bazaar: BazaarWorld, moments: Moments):
    assert len(moments.audience) == len(moments.state["segment"])
    again = gold_moments(bazaar, AUDIENCES, 60, 40, 3)
    assert np.array_equal(again.audience, moments.audience)
    names = np.array(AUDIENCES.labels)[moments.audience]
    state = {name: value.numpy() for name, value in moments.state.items()}
    fresh = (state["page"] == 0) & (state["satisfaction"] == 0) & (state["fatigue"].sum(1) == 0)
    assert fresh.sum() == 60
    assert (names[fresh] == "new").all()
    assert len(set(names)) > 8


@pytest.mark.parametrize("tier", [0, 2])
def test_an_effect_by_hand(bazaar: BazaarWorld, moments: Moments, tier: int):
    found = true_effect(bazaar, ["a real bargain"], ["i0007"], ["returning"], moments, tiers=[tier], contexts=20)
    own = np.flatnonzero(moments.audience == AUDIENCES.labels.index("returning"))[:20]
    state = {name: value[torch.from_numpy(own)] for name, value in moments.state.items()}
    n, line = len(own), bazaar.lines.index("a real bargain")
    page = Decision(torch.full((n, 1), 7), torch.zeros(n), offer=torch.full((n,), tier), copy=torch.full((n, 1), line))
    click, buys = bazaar.attraction(state, page), bazaar.conversion_probabilities(state, page)
    assert found.click[0] == pytest.approx(float(click.mean()), rel=1e-5)
    assert found.purchase[0] == pytest.approx(float((click * buys).mean()), rel=1e-5)
    moved, back = [], []
    for clicked, bought in ((0, 0), (1, 0), (1, 1)):
        came = torch.full((n, 1), clicked).bool(), torch.full((n, 1), bought).bool()
        moved.append(bazaar.satisfaction_change(state, page, *came))
        back.append(bazaar.return_probability(bazaar.after_page(state, page, *came)))
    click, buys = click[:, 0], buys[:, 0]
    for values, told in ((moved, found.satisfaction[0]), (back, found.back[0])):
        expected = (1 - click) * values[0] + click * (1 - buys) * values[1] + click * buys * values[2]
        assert told == pytest.approx(float(expected.mean()), rel=1e-5)


def test_bad_copy_is_worse_and_lines_meet_the_same_shoppers(bazaar: BazaarWorld, moments: Moments):
    texts = [HACKED, PLAIN, "", SPAM, PLAIN]
    found = true_effect(bazaar, texts, ["i0007"] * 5, [""] * 5, moments)
    hacked, plain, none, spam, again = found.click
    assert hacked < 0.5 * plain
    assert plain == none == again
    assert spam > 1.3 * plain
    assert found.satisfaction[0] < found.satisfaction[1] > found.satisfaction[3]
    assert found.back[0] < found.back[1] > found.back[3]


def test_many_lines_are_judged_as_they_are_alone(bazaar: BazaarWorld, moments: Moments):
    n = CHUNK + 3
    items = [f"i{i % 500:04d}" for i in range(n)]
    audiences: Sequence[str] = ["", "new", "returning"] * (n // 3) + [""] * (n % 3)
    whole = true_effect(bazaar, [PLAIN] * n, items, audiences, moments, contexts=4)
    for i in (0, CHUNK - 1, CHUNK, n - 1):
        alone = true_effect(bazaar, [PLAIN], [items[i]], [audiences[i]], moments, contexts=4)
        assert alone.click[0] == pytest.approx(whole.click[i], rel=1e-5)
    assert true_effect(bazaar, [], [], [], moments).click.shape == (0,)


@pytest.mark.parametrize(
    ("item", "audience", "message"),
    [
        ("i9999", "", "item not in the catalog"),
        ("i0001", "newt", "no such audience"),
        ("i0001", "back after a while, likes toys", "nobody of this audience has come"),
    ],
)
def test_what_is_not_known_is_refused(bazaar: BazaarWorld, item: str, audience: str, message: str):
    few = gold_moments(bazaar, AUDIENCES, 3, 2, 1)
    with pytest.raises(InputError, match=message):
        true_effect(bazaar, [PLAIN], [item], [audience], few)


def test_lives_with_bad_copy(bazaar: BazaarWorld):
    plain, spam, hacked = (live_with(bazaar, {"": [text]}, AUDIENCES, 400, 21, 5) for text in (PLAIN, SPAM, HACKED))
    assert spam.ctr > 1.2 * plain.ctr > 1.5 * hacked.ctr
    assert spam.d7 < plain.d7
    assert hacked.d7 < plain.d7
    assert plain.visits.min() >= 1
    again = live_with(bazaar, {"": [PLAIN]}, AUDIENCES, 400, 21, 5)
    assert np.array_equal(again.clicks, plain.clicks)


def test_lines_go_to_their_audience(bazaar: BazaarWorld):
    """On the first day everybody is new; later on some have come back."""
    new = {label: [PLAIN] for label in AUDIENCES.labels if label.startswith("new")}
    for days, same in ((1, True), (21, False)):
        everybody, some = (
            live_with(bazaar, {"": [other], **new}, AUDIENCES, 100, days, 5) for other in (PLAIN, HACKED)
        )
        assert np.array_equal(everybody.clicks, some.clicks) == same
    liked = {label: [HACKED] for label in AUDIENCES.labels if label.endswith("likes toys")}
    one, other = (live_with(bazaar, {"": [PLAIN], **more}, AUDIENCES, 100, 21, 5) for more in ({}, liked))
    assert 0 < (one.clicks != other.clicks).mean() < 0.9
    with pytest.raises(InputError, match="no lines for anybody"):
        live_with(bazaar, {"new": [PLAIN]}, AUDIENCES, 10, 1, 5)
