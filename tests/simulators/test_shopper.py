"""The click model of one shopper against arithmetic done by hand."""

import numpy as np
import pytest
import torch

from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY
from hawker.simulators.shopper import ARCHITECTURES, Architecture, Ensemble, ShopperModel, calibrated, log_odds
from hawker.simulators.small import small_tables

SIZE = 3
SMALL = Architecture(hidden=2, depth=1)


@pytest.fixture
def builder() -> ContextBuilder:
    return ContextBuilder.fit(*small_tables(n_items=6))


def model_of(builder: ContextBuilder, architecture: Architecture = SMALL, filled: bool = True):
    """Return a member with first weights, or with every weight filled at random."""
    generator = torch.Generator().manual_seed(3)
    model = ShopperModel(builder, SIZE, architecture, 0.1, generator)
    if filled:
        for parameter in model.parameters():
            parameter.data.normal_(std=0.5, generator=generator)
    return model.requires_grad_(False)


def pages(builder: ContextBuilder, n: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return shopper features, slates with an empty slot, and affinities."""
    generator = torch.Generator().manual_seed(4)
    shopper = torch.randn(n, builder.shopper.width, generator=generator)
    slate = torch.rand(n, 6, generator=generator).argsort(1)[:, :SIZE]
    slate[0, 1] = EMPTY
    return shopper, slate, torch.rand(n, SIZE, generator=generator)


def test_probability_is_examination_times_attraction(builder):
    model, (shopper, slate, affinity) = model_of(builder), pages(builder)
    got = model(shopper, slate, affinity)
    w = {name: value.double().numpy() for name, value in model.state_dict().items()}
    items = (builder.catalog.vectors - builder.catalog.features.centre) / builder.catalog.features.spread
    people = (shopper.double().numpy() - builder.shopper.centre) / builder.shopper.spread
    for b in range(len(slate)):
        for k in range(SIZE):
            i = int(slate[b, k])
            if i == EMPTY:
                assert got[b, k] == 0
                continue
            odds = w["base"] + w["affinity_effect"] * float(affinity[b, k])
            odds += w["shopper_effect.weight"][0] @ people[b]
            odds += w["item_effect.weight"][0] @ items[i] + w["own_effect.weight"][i, 0]
            taste = w["item_taste.weight"] @ items[i] + w["own_taste.weight"][i]
            odds += (w["shopper_taste.weight"] @ people[b]) @ taste
            examined = np.exp(w["position"][k] - w["position"].max())
            assert float(got[b, k]) == pytest.approx(examined / (1 + np.exp(-odds)), rel=1e-5)


def test_the_best_position_is_always_examined(builder):
    model, (shopper, slate, affinity) = model_of(builder), pages(builder)
    model.position[:] = torch.tensor([-1.0, 5.0, 4.0])
    assert model.log_examination().tolist() == [-6.0, 0.0, -1.0]
    before = model(shopper, slate, affinity)
    model.position += 7.0
    torch.testing.assert_close(model(shopper, slate, affinity), before)
    attraction = model.log_odds(shopper, slate.clamp(min=0), affinity).sigmoid()
    torch.testing.assert_close(before[1:, 1], attraction[1:, 1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_first_guess_is_about_the_click_rate_at_every_position(builder, architecture):
    model = model_of(builder, architecture, filled=False)
    shopper = builder.from_impressions(small_tables(n_items=6)[0]).shopper
    slate = torch.arange(SIZE).expand(len(shopper), -1)
    mean = model(torch.from_numpy(shopper), slate, torch.zeros(slate.shape)).mean(0)
    assert mean.tolist() == pytest.approx([0.1] * SIZE, rel=0.3)


def test_without_its_own_vectors_an_item_is_its_features(builder):
    model, (shopper, _, affinity) = model_of(builder), pages(builder)
    model.item_vectors[4] = model.item_vectors[1]
    pair = torch.tensor([[1, 4]]).expand(len(shopper), -1)
    affinity = affinity[:, :1].expand(-1, 2)
    own = model.log_odds(shopper, pair, affinity)
    assert not torch.isclose(own[:, 0], own[:, 1]).any()
    dropped = model.log_odds(shopper, pair, affinity, torch.tensor([1.0, 0, 1, 1, 0, 1]))
    torch.testing.assert_close(dropped[:, 0], dropped[:, 1])
    for own_vectors in (model.own_effect.weight, model.own_taste.weight):
        own_vectors[[1, 4]] = 0.0
    torch.testing.assert_close(model.log_odds(shopper, pair, affinity), dropped)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("nothing_global")
def test_first_weights_come_from_the_generator_alone(builder, architecture):
    one, two = (model_of(builder, architecture, filled=False).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_shop_that_records_no_features_still_has_shoppers():
    impressions, items = small_tables(n_items=6)
    builder = ContextBuilder.fit(impressions.drop(columns=["age", "segment"]), items[["item_id"]])
    assert builder.catalog.features.width == 0
    for architecture in ARCHITECTURES:
        shopper, slate, affinity = pages(builder)
        assert torch.isfinite(model_of(builder, architecture)(shopper, slate, affinity)).all()


@pytest.mark.parametrize(
    ("probability", "calibration", "expected"),
    [
        (0.2, (0.0, 1.0), 0.2),
        (0.5, (1.0, 3.0), 1 / (1 + np.exp(-1))),
        (0.2, (0.0, 2.0), 1 / 17),  # odds 1/4 become 1/16
        (0.2, (np.log(2), 1.0), 1 / 3),  # odds 1/4 become 1/2
    ],
)
def test_calibration_acts_on_the_log_odds(probability, calibration, expected):
    assert float(calibrated(torch.tensor(probability), torch.tensor(calibration))) == pytest.approx(expected, rel=1e-5)


def test_log_odds_are_finite_where_probabilities_are_certain():
    odds = log_odds(torch.tensor([0.0, 0.5, 1.0]))
    assert torch.isfinite(odds).all()
    assert odds[0] < -10 < odds[1] == 0 < 10 < odds[2]


def test_ensemble_calibrates_every_member_and_leaves_empty_slots_empty(builder):
    members = [model_of(builder, architecture) for architecture in ARCHITECTURES[:2]]
    calibration = torch.tensor([-0.5, 0.8])
    shopper, slate, affinity = pages(builder)
    got = Ensemble(members, calibration)(shopper, slate, affinity)
    assert got.shape == (2, *slate.shape)
    assert (got[:, slate == EMPTY] == 0).all()
    for m, member in enumerate(members):
        expected = calibrated(member(shopper, slate, affinity), calibration)
        torch.testing.assert_close(got[m][slate != EMPTY], expected[slate != EMPTY])
