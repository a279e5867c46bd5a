"""Pages seen through a tuned language model: what is tuned, what stays, and that a judge decides."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from hawker.agents import tuned_pages
from hawker.agents.backbone import Backbone, BackboneConfig, texts_of
from hawker.agents.config import TrainConfig
from hawker.agents.tuned_pages import Trained, compare_eyes
from hawker.envs.page import RECOMMEND
from hawker.policies.page_actor import PageStrategy
from hawker.policies.small_writer import small_model
from hawker.shop.artefacts import write_directory
from hawker.shop.context import ContextBuilder
from hawker.shop.decision import EMPTY, Outcome
from hawker.shop.errors import InputError
from hawker.shop.language import HashedEncoder
from hawker.simulators.small import small_tables, small_world
from hawker.simulators.world import Shoppers

CPU = torch.device("cpu")
KNOWN, ALL = 16, 80
FILLERS = [
    f"{a}{b}" for a in ("amber", "cedar", "fjord", "ivory", "larch", "ochre") for b in ("dale", "holm", "mere", "wick")
]


def worded(seed: int = 0) -> tuple[list[str], torch.Tensor]:
    """Return texts of ALL items, eight fillers and one word that counts, and which are good."""
    drawn = np.random.default_rng(seed)
    good = drawn.permutation(ALL) % 2 == 0
    texts = []
    for is_good in good:
        words = list(drawn.choice(FILLERS, 8))
        words.insert(drawn.integers(9), "fine" if is_good else "poor")
        texts.append(" ".join(["a", *words]))
    return texts, torch.from_numpy(good)


class WordedShop:
    """Everybody clicks on items with one word in their text, and hardly on others; pages have 6 candidates."""

    def __init__(self, stock: range, chances=(0.1, 0.6)):
        self.texts, self.good = worded()
        impressions, items = small_tables(ALL, 2)
        items = items.assign(title=self.texts)
        self.items, self.builder = items, ContextBuilder.fit(impressions, items, HashedEncoder(8))
        self._world = small_world(ALL, 2)
        self.size, self.choices, self.device, self.offers, self.lines = 2, 6, CPU, 1, ()
        self.bids, self._stock, self._chances = torch.zeros(ALL), torch.tensor(stock), torch.tensor(chances)

    def arrive(self, n, generator):
        """Return n shoppers, each with candidates of their own."""
        here = self._world.arrive(n, generator)
        drawn = torch.rand(n, len(self._stock), generator=generator).topk(6, 1).indices
        candidates, mask = self._stock[drawn], torch.ones(n, 6, dtype=torch.bool)
        context = dataclasses.replace(here.context, candidates=candidates, mask=mask, affinity=torch.zeros(n, 6))
        return Shoppers(context, here.member, {})

    def respond(self, shoppers, decision, generator):
        """Answer one page, the only one."""
        odds = self._chances[self.good.long()][decision.slate] * (decision.slate != EMPTY)
        gone = torch.ones(len(odds), dtype=torch.bool)
        return shoppers, Outcome((torch.rand(odds.shape, generator=generator) < odds).float(), odds, gone)


TRAIN = TrainConfig(
    steps=8_192, shoppers=128, pages=4, batch=128, epochs=2, learning_rate=1e-2, hidden=16, entropy=1e-3, device="cpu"
)
SHORT = dataclasses.replace(TRAIN, steps=4 * 512)
"""Four rollouts: the language model learns between them."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts, _ = worded()
    return small_model(tmp_path_factory.mktemp("models") / "model", [*texts, *FILLERS * 20, *["fine", "poor"] * 20])


def silent(*_: object) -> None:
    """Take a report of progress and drop it."""


def tuned(model: Path, judge: WordedShop, train: TrainConfig = SHORT, every: int = 1, told=silent) -> Trained:
    shop = WordedShop(range(KNOWN))
    backbone = BackboneConfig(str(model), every=every, learning_rate=1e-2, rank=4, rows=64)
    return compare_eyes(shop, judge, texts_of(shop.items), train, backbone, RECOMMEND, None, told)


@pytest.fixture(scope="module")
def short(model: Path) -> Trained:
    """A short training, before a judge to whom all items are one."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tuned_pages, "JUDGED_SHOPPERS", 400)
        return tuned(model, WordedShop(range(ALL), (0.3, 0.3)))


def test_tuning_pays_where_the_text_of_new_items_counts(model, monkeypatch):
    """Sixteen items do not tell the frozen model which of two dozen words counts; tuned, it hears it best."""
    monkeypatch.setattr(tuned_pages, "JUDGED_SHOPPERS", 1_000)
    found = tuned(model, WordedShop(range(KNOWN, ALL)), TRAIN)
    assert found.kept == "tuned"
    assert found.strategy is found.pages["tuned"]
    figures = found.figures
    assert figures["reward_per_shopper.gain"]["low"] > 0.05
    assert figures["reward_per_shopper.tuned"]["value"] > 0.9, "of 1.14 at most, 0.7 by chance"
    difference = figures["reward_per_shopper.tuned"]["value"] - figures["reward_per_shopper.frozen"]["value"]
    assert figures["reward_per_shopper.gain"]["value"] == pytest.approx(difference)
    assert figures["reward_per_shopper.gain"]["n"] == 1_000


def test_the_frozen_ones_are_kept_where_the_judge_sees_no_gain(short):
    gain = short.figures["reward_per_shopper.gain"]
    assert (gain["value"], gain["low"], gain["high"]) == (0, 0, 0), "the same shoppers do the same on any page"
    assert short.kept == "frozen"
    assert short.strategy is short.pages["frozen"]


@pytest.mark.parametrize(
    ("low", "high", "kept"),
    [(0.01, 0.02, "tuned"), (0.0, 0.02, "frozen"), (-0.01, 0.02, "frozen"), (None, None, "frozen")],
)
def test_the_interval_decides(low, high, kept):
    gain = {"value": 0.01, "low": low, "high": high, "n": 10, "unit": "reward per shopper"}
    assert tuned_pages.decided({"reward_per_shopper.gain": gain}) == kept


def test_the_tuned_pages_see_what_the_tuned_model_says(short):
    shop, pages = WordedShop(range(KNOWN)), short.pages
    frozen, seen = pages["frozen"].builder.catalog, pages["tuned"].builder.catalog
    text = slice(frozen.features.width, frozen.width)
    vectors = short.backbone.encode(shop.texts)
    np.testing.assert_array_equal(seen.vectors[:, text], vectors)
    np.testing.assert_array_equal(pages["tuned"].actor.slate.item_vectors.numpy(), seen.vectors)
    np.testing.assert_array_equal(pages["frozen"].actor.slate.item_vectors.numpy(), frozen.vectors)
    np.testing.assert_array_equal(seen.vectors[:, : text.start], shop.builder.catalog.vectors[:, : text.start])
    apart = np.linalg.norm((seen.vectors - frozen.vectors)[:, text] / frozen.spread[text], axis=1)
    assert apart[KNOWN:].min() > 0, "items that were never shown are read anew, too"
    assert short.history[-1]["moved"] == pytest.approx(float(np.sqrt(np.square(apart).mean())), rel=1e-4)
    for name in ("item_centre", "item_spread"):
        one, other = (getattr(pages[eyes].actor.slate, name) for eyes in ("frozen", "tuned"))
        assert torch.equal(one, other), "the actor's weights mean what they meant"
    slate = pages["tuned"].actor.slate
    assert torch.equal(slate._scaled_items, (slate.item_vectors - slate.item_centre) / slate.item_spread)
    assert not slate._scaled_items.requires_grad
    assert short.backbone.digest == seen.text.digest != frozen.text.digest


def test_the_model_learns_between_rollouts_and_not_after_the_last(short):
    assert [each["pages"] for each in short.history] == [512, 1024, 1536]
    assert all(each["norm"] > 0 for each in short.history)
    moved = [each["moved"] for each in short.history]
    assert 0 < moved[0] < moved[-1]


def test_the_simulated_shoppers_keep_their_own_vectors(model):
    shop = WordedShop(range(KNOWN))
    before = shop.builder.catalog.vectors.copy()
    other = tuned_pages.seen(shop, dataclasses.replace(shop.builder.catalog, vectors=before + 1))
    assert (other.builder.catalog.vectors == before + 1).all()
    np.testing.assert_array_equal(shop.builder.catalog.vectors, before)


@pytest.mark.usefixtures("nothing_global")
def test_same_seed_same_pages(model, short, monkeypatch):
    monkeypatch.setattr(tuned_pages, "JUDGED_SHOPPERS", 400)
    rewards = []
    again = tuned(model, WordedShop(range(ALL), (0.3, 0.3)), told=lambda *told: rewards.append(told))
    assert again.figures == short.figures
    assert again.history == short.history
    for eyes in ("frozen", "tuned"):
        one, other = (each.pages[eyes].actor.state_dict() for each in (short, again))
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert [told[:3] for told in rewards[:2]] == [("frozen", 512, 2048), ("frozen", 1024, 2048)]
    assert rewards[4][0] == "tuned"
    assert rewards[4][3] == rewards[0][3], "both begin as one"
    assert rewards[5][3] != rewards[1][3], "and part after the first step"


def test_the_critic_learns_first_and_the_model_waits(model, monkeypatch):
    monkeypatch.setattr(tuned_pages, "JUDGED_SHOPPERS", 50)
    train = dataclasses.replace(SHORT, critic_first=512)
    found = tuned(model, WordedShop(range(KNOWN)), train, every=2)
    assert [each["pages"] for each in found.history] == [1536], "one rollout for the critic, then two"


def test_tuned_pages_can_be_stored(short, tmp_path):
    with write_directory(tmp_path / "policy", "policy") as scratch:
        short.pages["tuned"].save(scratch)
    again, here = PageStrategy.load(tmp_path / "policy", CPU), WordedShop(range(ALL))
    context = here.arrive(50, torch.Generator().manual_seed(0)).context
    one, other = (each.actor(context).slate for each in (short.pages["tuned"], again))
    torch.testing.assert_close(one, other)
    assert again.builder.catalog.text == short.pages["tuned"].builder.catalog.text


def test_no_such_model():
    with pytest.raises(InputError, match="nowhere"):
        tuned(Path("nowhere/at/all"), WordedShop(range(ALL)))


def test_what_ppo_says_of_vectors_goes_through_the_model(model, monkeypatch):
    """The gradient that is pulled is that of the mean loss of all minibatches in the model's own vectors."""
    monkeypatch.setattr(tuned_pages, "JUDGED_SHOPPERS", 50)
    pulled = []
    plain = Backbone.pull
    monkeypatch.setattr(Backbone, "pull", lambda self, texts, g: (pulled.append(g.clone()), plain(self, texts, g)))
    found = tuned(model, WordedShop(range(KNOWN)), dataclasses.replace(SHORT, steps=1024))
    assert len(pulled) == len(found.history) == 1
    assert pulled[0].shape == (ALL, 32)
    assert pulled[0][:KNOWN].norm(dim=1).min() > 0
    assert not pulled[0][KNOWN:].any(), "who was never a candidate has no say"
