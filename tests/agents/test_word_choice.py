"""Training to choose by words: what it learns, from what, and that it can be interrupted."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hawker.agents.word_choice import JUDGED, _Course, _fresh, _slates, label_kl, train_words
from hawker.agents.word_config import WordsConfig
from hawker.policies.choice_prompts import item_words
from hawker.policies.slate import PlackettLuce
from hawker.policies.small_writer import small_model
from hawker.policies.word_choice import WordChoice
from hawker.policies.writer import load_causal, load_tokenizer, save_model
from hawker.shop.artefacts import write_directory
from hawker.shop.decision import EMPTY, Outcome
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.small import small_tables, small_world
from hawker.simulators.world import Shoppers

CPU, N_ITEMS, SIZE, BEST = torch.device("cpu"), 5, 2, 3
ITEMS = small_tables(N_ITEMS, SIZE)[1]
CONFIG = WordsConfig(
    steps=4, batch=4, rows=2, rank=4, learning_rate=1e-2, slates=4, beta=0.1, checkpoint_every=2, device="cpu"
)


class OneItemPays:
    """A shop in which one item is clicked, in the upper slot twice as often; shoppers come every three days."""

    def __init__(self, one_shopper: bool = False):
        self._world = small_world(N_ITEMS, SIZE)
        self.builder, self.size, self.device, self.choices = self._world.builder, SIZE, CPU, N_ITEMS
        self.offers, self.lines, self.bids = 1, (), self._world.bids
        self._one = one_shopper

    def arrive(self, n, generator):
        here = self._world.arrive(n, generator)
        context = here.context
        if self._one:
            first = context.map(lambda array: array[:1])
            context = dataclasses.replace(first, shopper=torch.zeros_like(first.shopper))
            context = dataclasses.replace(context, affinity=torch.zeros_like(first.affinity))
            context = context.map(lambda array: array.expand(n, -1))
        return Shoppers(context, here.member, {"visits": torch.zeros(n)})

    def respond(self, shoppers, decision, generator):
        odds = torch.tensor([0.8, 0.4]) * (decision.slate == BEST)
        clicked = (torch.rand(odds.shape, generator=generator) < odds).float()
        n = len(odds)
        visits = shoppers.state["visits"] + 1
        gone = torch.zeros(n, dtype=torch.bool)
        days = torch.full((n,), 3.0)
        outcome = Outcome(clicked, odds, gone, leave=torch.ones_like(gone), days=days)
        return dataclasses.replace(shoppers, state={"visits": visits}), outcome


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a label for every item, and weights large enough to prefer one."""
    texts = [" A B C D E", *[f"item-{i} < shoes >, < hats >" for i in range(9)]] * 9
    path = small_model(tmp_path_factory.mktemp("models") / "words", texts)
    network = load_causal(path, torch.float32)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(8 if weight.ndim == 2 else 1)
    with write_directory(path, "language model") as scratch:
        save_model(network, load_tokenizer(path), scratch)
    return path


def run_words(where: Path, model: Path, config: WordsConfig = CONFIG, world: Any = None, **options: Any) -> Any:
    told = {"resume": False, "progress": lambda done, total, value: None} | options
    return train_words(Run(where), str(model), world or OneItemPays(), ITEMS, RewardSpec(), config, **told)


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WordChoice, dict[str, Any]]:
    where = tmp_path_factory.mktemp("run")
    return where, *run_words(where, model)


def untrained(model: Path, world: Any) -> WordChoice:
    network = load_causal(model, torch.float32).requires_grad_(False).eval()
    words = item_words(ITEMS, world.builder.catalog)
    return WordChoice(network, load_tokenizer(model), world.builder, words, world.size)


def rewards(report: dict[str, Any]) -> list[tuple[float, float]]:
    return [(entry["reward"], entry["loss"]) for entry in report["history"]]


def test_what_pays_becomes_likelier(model: Path, tmp_path: Path):
    world = OneItemPays(one_shopper=True)
    config = dataclasses.replace(CONFIG, steps=25, beta=0.0, slates=8)
    context = world.arrive(1, torch.Generator()).context
    before = untrained(model, world).distribution(context).logits.softmax(1)[0, BEST]
    choice, report = run_words(tmp_path, model, config, world)
    after = choice.distribution(context).logits.softmax(1)[0, BEST]
    assert before < 0.4
    assert after > 0.8
    assert report["figures"]["reward.words"]["value"] > report["figures"]["reward.untrained"]["value"] + 0.2
    assert report["figures"]["gain.words"]["low"] > 0.2
    assert report["figures"]["reward.random"]["n"] == JUDGED
    again = WordChoice.load(tmp_path / "words", CPU)
    assert torch.allclose(again.distribution(context).logits.softmax(1)[0, BEST], after, atol=1e-5)


def test_the_gradient_is_that_of_the_reward():
    """On average over many pages, the loss' gradient by the logits is minus that of the expected reward."""
    world, n = OneItemPays(), 2_000
    generator = torch.Generator().manual_seed(1)
    logits = torch.tensor([[0.3, -0.5, 0.0, 0.2, 1.0]], requires_grad=True)
    mask = torch.ones_like(logits, dtype=torch.bool)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    every = PlackettLuce(logits.expand(len(pairs), -1), mask.expand(len(pairs), -1), SIZE).log_prob(pairs).exp()
    (exact,) = torch.autograd.grad((every * (torch.tensor([0.8, 0.4]) * (pairs == BEST)).sum(1)).sum(), logits)
    herd = _fresh(world, n, generator)
    policy = PlackettLuce(logits.expand(n, -1), mask.expand(n, -1), SIZE)
    with torch.no_grad():
        picks, worth, _ = _slates(world, herd, policy, RewardSpec(), 3, generator)
    others = (worth.sum(1, keepdim=True) - worth) / (worth.shape[1] - 1)
    log_prob = torch.stack([policy.log_prob(each) for each in picks], 1)
    (found,) = torch.autograd.grad(((worth - others) * log_prob).mean(), logits)
    assert torch.allclose(found, exact, atol=0.02)
    assert exact.abs().max() > 0.1


def test_the_baseline_is_the_mean_of_the_other_slates(model: Path):
    """The loss of the first step, by hand: from slates drawn with the same seed."""
    world, config = OneItemPays(), dataclasses.replace(CONFIG, batch=2, beta=0.0)
    course = _Course(untrained(model, world), world, RewardSpec(), config, 28.0)
    reference = untrained(model, world)
    generator = torch.Generator().manual_seed(config.seed)
    herd = _fresh(world, 2, generator)
    policy = reference.distribution(herd.here.context)
    picks, worth, _ = _slates(world, herd, policy, RewardSpec(), 4, generator)
    unit = np.sqrt(worth.numpy().var(1, ddof=1).mean())
    loss = 0.0
    for page in range(2):
        for slate in range(4):
            rest = [float(worth[page, i]) for i in range(4) if i != slate]
            advantage = (float(worth[page, slate]) - sum(rest) / 3) / unit
            loss -= advantage * float(policy.log_prob(picks[slate])[page].detach()) / 8
    entry = course.learn()
    assert entry["loss"] == pytest.approx(loss, rel=1e-4)
    assert entry["reward"] == pytest.approx(float(worth.mean()))
    assert course.unit == pytest.approx(unit)


def test_rewards_in_another_currency_train_the_same(model: Path):
    """All but the reported reward: advantages are in units of their spread."""
    world = OneItemPays()
    histories = []
    for click in (1.0, 100.0):
        course = _Course(untrained(model, world), world, RewardSpec(click=click), CONFIG, 28.0)
        histories.append([course.learn() for _ in range(3)])
    for one, other in zip(*histories, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4)
        assert other["reward"] == pytest.approx(100 * one["reward"], rel=1e-3)


def test_the_divergence_is_exact():
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    mine, theirs = (PlackettLuce(torch.randn(3, 3, generator=generator), mask, 2) for _ in range(2))
    for page in range(2):
        one, other = (each.logits[page][mask[page]].log_softmax(0) for each in (mine, theirs))
        expected = (one.exp() * (one - other)).sum()
        assert float(label_kl(mine, theirs)[page]) == pytest.approx(float(expected), rel=1e-5)
    assert label_kl(mine, mine).tolist() == [0.0, 0.0, 0.0]
    assert float(label_kl(mine, theirs)[2]) == 0.0


def test_a_large_beta_keeps_it_where_it_was(model: Path):
    world = OneItemPays()
    free, held = (
        _Course(untrained(model, world), world, RewardSpec(), dataclasses.replace(CONFIG, beta=beta), 28.0)
        for beta in (1e-6, 30.0)
    )
    far = [[course.learn()["kl"] for _ in range(6)][-1] for course in (free, held)]
    assert far[1] < far[0] / 2
    assert far[0] > 1e-4


def test_shoppers_go_on_to_their_next_page():
    world, generator = OneItemPays(), torch.Generator().manual_seed(0)
    herd = _fresh(world, 3, generator)
    for page in range(1, 4):
        policy = PlackettLuce(torch.zeros(3, N_ITEMS), torch.ones(3, N_ITEMS, dtype=torch.bool), SIZE)
        follow = _slates(world, herd, policy, RewardSpec(), 2, generator)[2]
        follow(9.0)
        assert herd.here.state["visits"].tolist() == [page % 3] * 3  # the third page is on day 9: others come
        assert herd.day.tolist() == [3.0 * (page % 3)] * 3
        assert (herd.previous == EMPTY).all()  # every page is a visit of its own


def test_same_seed_same_weights_and_nothing_global(
    trained: Any, model: Path, tmp_path: Path, nothing_global: None, no_network: None, capfd: pytest.CaptureFixture[str]
):
    where, _, report = trained
    _, again = run_words(tmp_path, model)
    assert rewards(again) == rewards(report)
    assert weights(tmp_path) == weights(where)
    assert capfd.readouterr() == ("", "")
    assert {item.name for item in tmp_path.iterdir()} == {"words", "words-checkpoint"}
    _, other = run_words(tmp_path, model, dataclasses.replace(CONFIG, seed=1, steps=1))
    assert rewards(other)[0] != rewards(report)[0]


def weights(where: Path) -> bytes:
    return (where / "words/model.safetensors").read_bytes()


def test_interrupted_and_resumed(trained: Any, model: Path, tmp_path: Path):
    where, _, report = trained

    def interrupt(done: int, total: int, value: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_words(tmp_path, model, progress=interrupt)
    assert not (tmp_path / "words").exists()
    seen = []
    _, again = run_words(tmp_path, model, resume=True, progress=lambda done, total, value: seen.append(done))
    assert seen == [3, 4]
    assert rewards(again) == rewards(report)
    assert weights(tmp_path) == weights(where)


def test_a_checkpoint_of_something_else(trained: Any, model: Path):
    where = trained[0]
    for options in ({"config": dataclasses.replace(CONFIG, slates=5)}, {"horizon": 3.0}, {"shoppers_digest": "x"}):
        with pytest.raises(InputError, match="the checkpoint was made with other options, another model or another"):
            run_words(where, model, resume=True, **options)


def test_what_is_written(trained: Any, model: Path):
    where, choice, report = trained
    assert json.loads((where / "words/train.json").read_text()) == report
    assert report["steps"] == len(report["history"]) == 4
    assert {"reward", "loss", "kl", "grad_norm", "seconds/step"} == set(report["history"][0])
    assert choice.trained_on["model"] == str(model)
    assert not [item for item in where.rglob("*") if item.suffix in {".bin", ".pkl", ".pt"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slates": 1}, "words.slates"),
        ({"rank": 0}, "words.rank"),
        ({"rows": 3}, "a multiple of rows, 3"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_bad_configs(model: Path, tmp_path: Path, change: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        run_words(tmp_path, model, dataclasses.replace(CONFIG, **change))
    assert not any(tmp_path.iterdir())


def test_a_loss_that_is_no_number(model: Path, tmp_path: Path):
    class Broken(OneItemPays):
        def respond(self, shoppers, decision, generator):
            after, outcome = super().respond(shoppers, decision, generator)
            return after, dataclasses.replace(outcome, click_probability=outcome.click_probability * torch.nan)

    with pytest.raises(InputError, match="the loss is not finite at step 1"):
        run_words(tmp_path, model, world=Broken())
    assert not any(tmp_path.iterdir())


def test_an_item_without_words(model: Path, tmp_path: Path):
    with pytest.raises(InputError, match="an item is not in the table items"):
        train_words(Run(tmp_path), str(model), OneItemPays(), pd.DataFrame(ITEMS[1:]), RewardSpec(), CONFIG, False, id)
