"""A language model learns to choose items by their labels, by policy gradient on the labels alone.

What differs from group-relative policy optimisation as trl has it:

- the log-probability is that of the whole slate under Plackett-Luce over the labels of the page, not of a token among
  all of the vocabulary: no probability is spent on what cannot be chosen;
- one pass over a page's prompt serves all of its slates, and each is drawn from the weights that learn from it: there
  is no ratio of probabilities, and nothing to clip;
- a slate's baseline is the mean of the page's other slates (RLOO; Kool et al. 2019; Ahmadian et al. 2024, arXiv
  2402.14740), and advantages are in units of their spread in the first pages, the same in every step;
- the KL divergence from the untrained model is summed over the labels, not sampled.

The reward of a page is what its first answer is worth (`hawker.shop.reward.RewardSpec`); shoppers go on by one of its
slates, so that pages of whole lives are learned from.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from hawker.agents.word_config import WordsConfig, check_words
from hawker.agents.writer_training import MADE_BY, Progress, adapter, agreement, digest_of, untouched
from hawker.policies.baselines import RandomStrategy
from hawker.policies.choice_prompts import item_words
from hawker.policies.protocol import SlateDistribution, Strategy, slate_of
from hawker.policies.slate import PlackettLuce
from hawker.policies.word_choice import KIND, WordChoice
from hawker.policies.writer import load_causal, load_tokenizer
from hawker.shop.artefacts import find_directory, read_json, verify_directory, write_directory, write_json
from hawker.shop.config import save_config, to_dict
from hawker.shop.context import Context
from hawker.shop.decision import EMPTY, Decision, Outcome
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.figures import Figure, figure
from hawker.shop.models import SOURCE, find_model
from hawker.shop.reward import RewardSpec
from hawker.shop.run import Run
from hawker.simulators.world import Shoppers, World

STATE, TENSORS, CHECKPOINT = "state.json", "state.safetensors", "words checkpoint"

JUDGED = 64
"""Pages that what was learned is measured on."""

STEEPEST = 1.0
"""Gradients are cut to this norm."""


@dataclass
class _Herd:
    """Shoppers whose pages are computed at once.

    Attributes:
        here: The shoppers at their page.
        day: Days since each of them came, (n,).
        previous: The slate of each one's page before in the same visit, (n, K); ``EMPTY`` at the first.
    """

    here: Shoppers
    day: Tensor
    previous: Tensor


def train_words(
    run: Run,
    model: str,
    world: World,
    items: pd.DataFrame,
    reward: RewardSpec,
    config: WordsConfig,
    resume: bool,
    progress: Progress,
    horizon: float = 28.0,
    shoppers_digest: str = "",
) -> tuple[WordChoice, dict[str, Any]]:
    """Train a language model to choose by words in a world, and write it to RUN/words.

    Args:
        run: Gets ``words`` and ``words-checkpoint``.
        model: The language model: a fetched name, a directory or a hub id.
        world: What answers; on the device of the config.
        items: The log's table of items, for what is said of them.
        reward: What a page is worth.
        config: How to train.
        resume: Go on from the run's checkpoint, if it has one.
        progress: Called after each step.
        horizon: Days after which another shopper comes in the place of one.
        shoppers_digest: What the world's answers depend on; a checkpoint must agree on it.

    Returns:
        The strategy and the report (``train.json``).

    Raises:
        InputError: No such model, too few labels, a bad config, a checkpoint of something else, a reward that the world
            cannot pay, a loss that is not finite, or too little memory.
    """
    check_words(config)
    words = item_words(items, world.builder.catalog)
    told = {"shoppers": shoppers_digest, "reward": to_dict(reward), "horizon": horizon}
    agree = agreement(config, model, digest_of([told, words]))
    path, checkpoint = find_model(model), run.path / "words-checkpoint"
    device = resolve_device(config.device)
    network = load_causal(path, torch.float32).to(device).requires_grad_(False).eval()
    trained_on = told | {"model": model, "made_from": untouched(model), "config": to_dict(config)}
    choice = WordChoice(network, load_tokenizer(path), world.builder, words, world.size, config.seed, trained_on)
    try:
        before = _judged(choice, world, reward, config)
        course = _Course(choice, world, reward, config, horizon)
        if resume and find_directory(checkpoint).exists():
            course.load(checkpoint, agree)
        while course.step < config.steps:
            entry = course.learn()
            if course.step % config.checkpoint_every == 0 or course.step == config.steps:
                course.save(checkpoint, agree)
            progress(course.step, config.steps, entry["reward"])
        choice.model = course.lora.merge_and_unload().requires_grad_(False)
        after = _judged(choice, world, reward, config)
    except torch.OutOfMemoryError:
        raise InputError("not enough memory", where="words", remedy="lower --rows or --rank") from None
    report = {
        "figures": _figures(world, reward, config, before, after),
        "judged_by": "the first pages of shoppers of the world it was trained in: an upper bound, not a promise",
        "model": model,
        "seed": config.seed,
        "steps": course.step,
        "seconds": round(sum(entry["seconds/step"] for entry in course.history), 3),
        "history": course.history,
    }
    with write_directory(run.words, KIND) as scratch:
        choice.save(scratch)
        write_json(scratch / SOURCE, {"model": model, "made_from": untouched(model)})
        save_config(config, scratch / "config.yaml")
        write_json(scratch / "train.json", report)
    return choice, report


class _Course:
    """The state of training: an adapter and its optimizer, shoppers, and the generator of all that is drawn.

    Attributes:
        lora: The model with its adapter.
        step: Steps so far.
        history: What each step came to.
        unit: The spread of the reward among slates of one page, of the first pages; 0 before any differ.
    """

    def __init__(
        self, choice: WordChoice, world: World, reward: RewardSpec, config: WordsConfig, horizon: float
    ) -> None:
        self.choice, self.world, self.reward, self.config, self.horizon = choice, world, reward, config, horizon
        self.lora = _with_adapter(choice.model, config)
        self.step, self.unit = 0, 0.0
        self.history: list[dict[str, float]] = []
        self._learned = {name: value for name, value in self.lora.named_parameters() if value.requires_grad}
        rate = config.learning_rate
        self._optimizer = torch.optim.AdamW(self._learned.values(), lr=rate, weight_decay=0.0)
        self._generator = torch.Generator(world.device).manual_seed(config.seed)
        herds = config.batch // config.rows
        self._herds = [_fresh(world, config.rows, self._generator) for _ in range(herds)]

    def learn(self) -> dict[str, float]:
        """Take one step, and return what it came to."""
        begun = time.perf_counter()
        found = [self._backward(herd) for herd in self._herds]
        entry = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
        entry["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(self._learned.values(), STEEPEST))
        for name in ("loss", "grad_norm"):
            if not math.isfinite(entry[name]):
                raise InputError(
                    f"the {name.replace('_', ' ')} is not finite at step {self.step + 1}",
                    where="words",
                    remedy="lower --learning-rate and train anew; the last checkpoint is as it was",
                )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        entry["seconds/step"] = time.perf_counter() - begun
        self.history.append(entry)
        return entry

    def _backward(self, herd: _Herd) -> dict[str, float]:
        """Let a herd see a page, add its share of the gradient, and lead it to its next page."""
        context, config = herd.here.context, self.config
        untrained = None
        if config.beta:
            with torch.no_grad(), self.lora.disable_adapter():
                untrained = self.choice.distribution(context)
        policy = self.choice.distribution(context)
        with torch.no_grad():
            picks, worth, follow = _slates(self.world, herd, policy, self.reward, config.slates, self._generator)
        if self.unit == 0.0:
            self.unit = float(worth.var(1).mean().sqrt())
        others = (worth.sum(1, keepdim=True) - worth) / (config.slates - 1)
        advantage = (worth - others) / (self.unit or 1.0)
        log_prob = torch.stack([policy.log_prob(each) for each in picks], 1)
        loss = -(advantage * log_prob).mean()
        entry = {"reward": float(worth.mean())}
        if untrained is not None:
            kl = label_kl(policy, untrained).mean()
            loss, entry["kl"] = loss + config.beta * kl, float(kl.detach())
        if loss.requires_grad:  # or no page had a choice
            (loss / len(self._herds)).backward()
        with torch.no_grad():
            follow(self.horizon)
        return entry | {"loss": float(loss.detach())}

    def save(self, path: Path, made_by: dict[str, Any]) -> None:
        """Write a checkpoint; the previous one is replaced in one rename."""
        tensors = {f"adapter.{name}": value for name, value in self._learned.items()}
        for i, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
        tensors |= {f"bias.{count}": value for count, value in self.choice.label_bias.items()}
        for i, herd in enumerate(self._herds):
            tensors |= {f"herd.{i}.{name}": value for name, value in _tensors(herd).items()}
        tensors["generator"] = self._generator.get_state()
        placed = [herd.here.placed for herd in self._herds]
        state = {"step": self.step, "unit": self.unit, "history": self.history, "placed": placed}
        with write_directory(path, CHECKPOINT) as scratch:
            owned = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
            save_file(owned, scratch / TENSORS)
            write_json(scratch / STATE, state)
            write_json(scratch / MADE_BY, made_by)

    def load(self, path: Path, made_by: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            InputError: It is damaged, or was made by something else.
        """
        path = verify_directory(path, CHECKPOINT)
        if read_json(path / MADE_BY) != made_by:
            what = "the checkpoint was made with other options, another model or another world"
            raise InputError(what, where=path, remedy="repeat them, or train anew without --resume")
        state = read_json(path / STATE)
        try:
            tensors = load_file(path / TENSORS, device=str(self.choice.device))
            with torch.no_grad():
                for name, value in self._learned.items():
                    value.copy_(tensors[f"adapter.{name}"])
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in _under(tensors, "optimizer.").items():
                i, _, key = name.partition(".")
                moments.setdefault(int(i), {})[key] = value
            groups = self._optimizer.state_dict()["param_groups"]
            self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
            self.choice.label_bias = {int(count): value for count, value in _under(tensors, "bias.").items()}
            self._herds = [_herd(_under(tensors, f"herd.{i}."), flag) for i, flag in enumerate(state["placed"])]
            self._generator.set_state(tensors["generator"].cpu())
            self.step, self.unit, self.history = int(state["step"]), float(state["unit"]), list(state["history"])
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError("not a checkpoint of this version", where=path, got=str(error).splitlines()[0]) from None


def label_kl(policy: PlackettLuce, other: PlackettLuce) -> Tensor:
    """Return the KL divergence of each page's first pick from another policy's, in nats, (B,); 0 without candidates."""
    mine, theirs = (
        each.logits.masked_fill(~policy.mask, -1e4).log_softmax(1).masked_fill(~policy.mask, 0.0)
        for each in (policy, other)
    )
    return (mine.exp() * policy.mask * (mine - theirs)).sum(1)


def _with_adapter(model: Any, config: WordsConfig) -> Any:
    """Put a LoRA adapter into a model, in place, its first weights drawn from the config's seed alone."""
    from peft import get_peft_model

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by names that are on their way out
        torch.random.set_rng_state(torch.Generator().manual_seed(config.seed).get_state())  # of the adapter
        return get_peft_model(model, adapter(config.rank)).eval()


def _fresh(world: World, n: int, generator: torch.Generator) -> _Herd:
    here = world.arrive(n, generator)
    previous = torch.full((n, world.size), EMPTY, device=world.device)
    return _Herd(here, torch.zeros(n, device=world.device), previous)


def _slates(
    world: World,
    herd: _Herd,
    policy: SlateDistribution,
    reward: RewardSpec,
    slates: int,
    generator: torch.Generator,
) -> tuple[list[Tensor], Tensor, Callable[[float], None]]:
    """Draw slates for each of a herd's n pages and let the world answer them.

    Returns:
        The picks, ``slates`` of shape (n, K); what each slate is worth, (n, slates); and what leads the herd to its
        next page by the first of them, given the horizon in days.
    """
    bids = world.bids if bool((world.bids > 0).any()) else None
    drawn, worth = [], []
    lived: list[tuple[Decision[Tensor], Shoppers, Outcome[Tensor]]] = []
    for _ in range(slates):
        picks = policy.sample(generator)
        decision = Decision(slate_of(herd.here.context, picks), policy.log_prob(picks))
        after, outcome = world.respond(herd.here, decision, generator)
        drawn.append(picks)
        worth.append(torch.stack(list(reward.components(outcome, decision, bids, herd.previous).values())).sum(0))
        lived = lived or [(decision, after, outcome)]

    def follow(horizon: float) -> None:
        decision, after, outcome = lived[0]
        days = torch.zeros_like(herd.day) if outcome.days is None else outcome.days.masked_fill(outcome.gone, 0.0)
        left = outcome.gone if outcome.leave is None else outcome.gone | outcome.leave
        over = outcome.gone | (herd.day + days >= horizon)
        herd.here = after.replaced(over, world.arrive(len(over), generator))
        herd.day = (herd.day + days).masked_fill(over, 0.0)
        herd.previous = decision.slate.masked_fill((left | over)[:, None], EMPTY)

    return drawn, torch.stack(worth, 1), follow


@torch.no_grad()
def _judged(strategy: Strategy, world: World, reward: RewardSpec, config: WordsConfig) -> Tensor:
    """Return what a strategy's slates are worth on the first pages of shoppers who come, on average, (JUDGED,)."""
    generator = torch.Generator(world.device).manual_seed(config.seed + 1)
    herd = _fresh(world, JUDGED, generator)
    policy = strategy.distribution(herd.here.context)
    return _slates(world, herd, policy, reward.plain, config.slates, generator)[1].mean(1).double().cpu()


def _figures(world: World, reward: RewardSpec, config: WordsConfig, before: Tensor, after: Tensor) -> dict[str, Figure]:
    random = _judged(RandomStrategy(world.size), world, reward, config)
    found = {"random": random, "untrained": before, "words": after}
    figures = {f"reward.{name}": _figure(values, "reward per page") for name, values in found.items()}
    return figures | {"gain.words": _figure(after - before, "reward per page, over the untrained model's")}


def _figure(values: Tensor, unit: str) -> Figure:
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return figure(mean, mean - half, mean + half, len(values), unit)


def _tensors(herd: _Herd) -> dict[str, Tensor]:
    here = herd.here
    context = {f"context.{field.name}": getattr(here.context, field.name) for field in fields(here.context)}
    state = {f"state.{name}": value for name, value in here.state.items()}
    return context | state | {"member": here.member, "day": herd.day, "previous": herd.previous}


def _herd(tensors: dict[str, Tensor], placed: bool) -> _Herd:
    context = Context(**_under(tensors, "context."))
    here = Shoppers(context, tensors["member"], _under(tensors, "state."), placed)
    return _Herd(here, tensors["day"], tensors["previous"])


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
