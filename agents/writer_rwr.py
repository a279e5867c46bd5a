"""The writer learns from the best of its own lines: reward-weighted regression, by trl's SFTTrainer.

What optimisation with a KL divergence tends to is known: the first writer's probability of a line times
exp(reward / beta). A policy gradient finds what is better on the whole first, since every brief tells of it; what is
better for whom a few briefs tell of each, and some hundred of them cannot. Lines written once for many briefs, weighted
by exp(reward / beta) among those of their brief, are drawn from that distribution, and may be learned from again and
again (Peters and Schaal 2007, Reinforcement learning by reward-weighted regression). No line is better than the writer
of them could make it: who has learned from the best writes anew, for other briefs (Gulcehre et al. 2023, Reinforced
self-training, arXiv 2308.08998).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hawker.agents.writer_config import RwrConfig, check
from hawker.agents.writer_data import Assignment
from hawker.agents.writer_reward import Answers, Level, Preferences, WriterReward, pairs_of
from hawker.agents.writer_sft import tune
from hawker.agents.writer_training import Progress, Stage, untouched
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.writer import Writer
from hawker.shop.devices import resolve_device
from hawker.shop.errors import InputError
from hawker.shop.run import Run

Floats = npt.NDArray[np.float64]


def rwr(
    run: Run,
    model: str,
    assignments: Sequence[Assignment],
    answers: Answers,
    guardrails: Guardrails,
    config: RwrConfig,
    resume: bool,
    progress: Progress,
    preferences: Preferences | None = None,
    base: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Let a writer write, learn from its lines by what they are worth, and write the result to RUN/writer/rwr.

    Args:
        run: Gets ``writer/rwr``, its checkpoint and its curves; of rounds before the last ``writer/rwr-1`` and so on.
        model: The writer to begin with: RUN/writer/sft, say.
        assignments: What there is to write for; ``config.briefs`` of them are.
        answers: The learned shoppers.
        guardrails: Rules of copy.
        config: How to train.
        resume: Go on from the checkpoints, where there are some; lines are written anew, the same.
        progress: Called after each step.
        preferences: A model of preferences, to stand beside the shoppers.
        base: The untouched model, the judge of fluency; by default the one that ``model`` was trained from.

    Returns:
        The model's directory and the report of the last round (``train.json``); its ``gains`` are, round by round, the
        mean reward of the lines that are learned from, where that of those that may be is 0.

    Raises:
        InputError: No such model, nothing to write for, answers that are not finite, every line refused, or as in
            `hawker.agents.writer_training.fine_tune`.
    """
    check(config)
    if not assignments:
        raise InputError("nothing to write for", where="writer rwr")
    device, base = resolve_device(config.device), untouched(model) if base is None else base
    generator, gains, written = np.random.default_rng(config.seed), list[float](), 0
    some = generator.permutation(len(assignments))[: config.briefs]
    rounds = min(config.rounds, len(some), config.steps)
    for number, part in enumerate(np.array_split(some, rounds), 1):
        steps = config.steps // rounds + (number <= config.steps % rounds)
        own = replace(config, steps=steps, novelty=config.novelty * number)
        writer, judge = Writer.load(model, device), Writer.load(base, device)
        reward = WriterReward(assignments, answers, guardrails, judge, writer.ends, own, preferences)
        rows, gain, level = _best_lines(writer, part.tolist(), assignments, reward, guardrails, own, generator)
        gains, written, tokenizer = [*gains, gain], written + len(part) * config.lines, writer.tokenizer
        del writer, judge, reward  # their memory is needed, and the reward holds the judge
        told = {"gains": gains, "level": asdict(level), "written": written}
        last = number == rounds
        stage, whole = Stage(run, "rwr" if last else f"rwr-{number}"), config if last else own
        path, report = tune(stage, model, tokenizer, rows, own, resume, progress, told, whole)
        model = str(path)
    return path, report


def _best_lines(
    writer: Writer,
    some: list[int],
    assignments: Sequence[Assignment],
    reward: WriterReward,
    guardrails: Guardrails,
    config: RwrConfig,
    generator: np.random.Generator,
) -> tuple[list[tuple[Brief, str]], float, Level]:
    """Let a writer write for some assignments; return what to learn from, what it is worth, and the lines' level."""
    briefs = [assignments[i].brief for i in some]
    said = writer.write(briefs, config.lines, 1.0, config.seed)
    lines = [[guardrails.tidy(text) for text in texts] for texts in said]
    level = reward.calibrate(some, said)
    flat = [line for texts in lines for line in texts]
    found = reward.of_lines(np.repeat(some, config.lines).tolist(), flat, np.array([bool(line) for line in flat]))
    worth = np.array([-np.inf if value is None else value for value in found]).reshape(len(some), config.lines)
    refused = [[bool(guardrails.hits(line, of)) for line in texts] for texts, of in zip(lines, briefs, strict=True)]
    worth[np.array(refused)] = -np.inf
    if not np.isfinite(worth).any():
        remedy = "begin with a writer tuned on the log, by hawker writer sft"
        raise InputError("the rules refuse every line that the writer wrote", where="writer rwr", remedy=remedy)
    pairs = [
        [pairs_of(line) - pairs_of(brief.title) for line in texts] for texts, brief in zip(lines, briefs, strict=True)
    ]
    chosen = draw_best(worth, pairs, config, generator)
    gain = float(np.mean([worth[i, j] for i, j in chosen]) - worth[np.isfinite(worth)].mean())
    return [(briefs[i], lines[i][j]) for i, j in chosen], gain, level


def draw_best(
    worth: Floats,
    pairs: Sequence[Sequence[Collection[Any]]],
    config: RwrConfig,
    generator: np.random.Generator,
) -> list[tuple[int, int]]:
    """Draw what is learned from: lines, each among those of its brief in proportion to exp(worth / beta).

    Briefs come in turn, in a new order each time, ``together`` lines of one in a row. A line is worth ``novelty`` more
    for each of its pairs of words, as far as no line drawn before has it: what is rare, and hardly worse, is kept.

    Args:
        worth: Of the lines for each brief, shape (briefs, lines); one that is -inf is not drawn, and a brief all of
            whose lines are is passed over. Not all are.
        pairs: Pairs of words of each line.
        config: Its beta, where 0 draws the best alone, and how much is drawn.
        generator: Source of randomness.

    Returns:
        Brief and line of each, by number.
    """
    usable, n = np.flatnonzero(np.isfinite(worth).any(1)), config.steps * config.batch
    drawn, often = list[tuple[int, int]](), Counter[Any]()
    while len(drawn) < n:
        for i in generator.permutation(usable).tolist():
            new = np.array([sum(1.0 / (1 + often[pair]) for pair in said) for said in pairs[i]])
            score = worth[i] + config.novelty * new
            chance = np.exp((score - score.max()) / max(config.beta, 1e-6))
            picks = generator.choice(len(chance), config.together, p=chance / chance.sum()).tolist()
            drawn += [(i, j) for j in picks]
            often.update(pair for j in picks for pair in pairs[i][j])
    return drawn[:n]
