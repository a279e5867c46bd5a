"""How the writer is trained; kept apart from torch, so that the command line can show it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec


@dataclass(frozen=True)
class TuneConfig:
    """What every stage of the writer's training has.

    Attributes:
        steps: Optimizer steps.
        batch: Rows of a step; for GRPO lines, a whole number of groups.
        rows: Rows computed at once; gradients are accumulated over batch / rows of them.
        learning_rate: AdamW's step size.
        decay: Whether the step size falls evenly, to 0 after the last step.
        rank: Rank of the LoRA adapter on every linear layer (Hu et al. 2021, arXiv 2106.09685), scaled by 2; it is
            merged into the weights at the end. 0 trains every weight.
        checkpoint_every: Steps between two checkpoints.
        seed: Decides first weights of adapters, the order of rows and every line that is drawn.
        device: "auto", "cpu" or "cuda".
    """

    steps: int = 100
    batch: int = 16
    rows: int = 8
    learning_rate: float = 2e-4
    decay: bool = False
    rank: int = 16
    checkpoint_every: int = 10
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class SftConfig(TuneConfig):
    """How the writer learns from logged copy.

    Attributes:
        steps: Optimizer steps.
        surface: Where the logged lines stood.
        sharpness: How much oftener lines that did well are learned from: weights are the line's lift to this power. 0
            learns from every impression alike.
        prior: Clicks that a line is expected to have had before the log is believed over the average line.
        together: Lines of one brief that are learned from in a row, at most: its prompt is read once for them.
    """

    steps: int = 80
    batch: int = 32
    rows: int = 32
    learning_rate: float = 1e-3
    decay: bool = True
    surface: str = "headline"
    sharpness: float = 2.0
    prior: float = 10.0
    together: int = 8


@dataclass(frozen=True)
class DpoConfig(TuneConfig):
    """How the writer learns from pairs of lines (DPO; Rafailov et al. 2023, arXiv 2305.18290).

    Attributes:
        learning_rate: AdamW's step size.
        beta: Weight of staying close to the writer it begins as.
    """

    learning_rate: float = 5e-5
    beta: float = 0.1


@dataclass(frozen=True)
class RewardModelConfig(TuneConfig):
    """How a model of preferences is learned from pairs of lines (Bradley-Terry)."""


@dataclass(frozen=True)
class RewardedConfig(TuneConfig):
    """What decides a line's reward (`hawker.agents.writer_reward.WriterReward`).

    Scores of the shoppers and of preferences are in standard deviations of what the lines of the writer it begins as
    score; penalties are in the same unit.

    Attributes:
        surface: Where the lines will stand.
        beta: Weight of a line's KL divergence from the writer it begins as: what training tends to is that writer's
            probability of a line times exp(reward / beta).
        preference: Weight of the model of preferences beside the shoppers, where there is one.
        fluency: Penalty for each nat a token by which the untouched model finds a line less likely than it found nine
            of ten of the first writer's lines, less ``slack``.
        slack: Nats a token of fluency that may be lost unpunished.
        diversity: Penalty for a line all of whose pairs of words stand in every other line of the batch, in
            proportion below that, beyond what nine of ten of the first writer's lines repeat.
        hit: Penalty for a line that a guardrail rejects or that does not end; such a line gains nothing else.
        reward: What the shop wants of its shoppers; its ``disagreement`` is the pessimism among the learned ones.
    """

    surface: str = "headline"
    beta: float = 0.3
    preference: float = 1.0
    fluency: float = 1.0
    slack: float = 0.1
    diversity: float = 6.0
    hit: float = 2.0
    reward: RewardSpec = field(default_factory=RewardSpec)


@dataclass(frozen=True)
class RwrConfig(RewardedConfig):
    """How the writer learns from the best of its own lines (reward-weighted regression; Peters & Schaal 2007).

    Attributes:
        steps: Optimizer steps, in all rounds.
        rounds: Times that it writes, each but the first with what it has learned before.
        briefs: What it writes for, in all rounds, at most.
        lines: Lines for each of them.
        together: Lines of one brief that are learned from in a row: its prompt is read once for them.
        novelty: What a line is worth more for each pair of words that no line drawn before it has: so much in the first
            round, twice that in the second and so on, since who has learned repeats itself.
    """

    steps: int = 200
    batch: int = 32
    rows: int = 32
    learning_rate: float = 3e-3
    decay: bool = True
    beta: float = 0.2
    diversity: float = 0.0
    rounds: int = 2
    briefs: int = 800
    lines: int = 12
    together: int = 4
    novelty: float = 1.5


@dataclass(frozen=True)
class GrpoConfig(RewardedConfig):
    """How the writer is optimised against learned shoppers (GRPO; Shao et al. 2024, arXiv 2402.03300).

    Attributes:
        steps: Optimizer steps.
        group: Lines for each brief.
        tokens: Longest line, in tokens.
        temperature: Of drawing lines.
        learning_rate: AdamW's step size.
        decay: Whether the step size falls evenly, to 0 after the last step: one that stays lets the writer wander.
        beta: As for every reward; high, since what is far from the first writer `RwrConfig` finds better.
        vllm: Whether lines are generated by vLLM, on a GPU.
    """

    steps: int = 3
    batch: int = 32
    rows: int = 32
    group: int = 8
    tokens: int = 24
    temperature: float = 1.0
    learning_rate: float = 5e-4
    decay: bool = True
    beta: float = 1.0
    vllm: bool = False


BOUNDS: dict[str, tuple[float, float]] = {
    "steps": (1, 10**9),
    "batch": (1, 10**6),
    "rows": (1, 10**6),
    "learning_rate": (1e-9, 1),
    "rank": (0, 1024),
    "checkpoint_every": (1, 10**9),
    "seed": (0, 2**31 - 1),
    "sharpness": (0, 100),
    "prior": (1e-3, 1e9),
    "together": (1, 1024),
    "rounds": (1, 1000),
    "briefs": (1, 10**6),
    "lines": (2, 1024),
    "novelty": (0, 1e6),
    "group": (2, 1024),
    "tokens": (2, 4096),
    "temperature": (1e-3, 100),
    "beta": (0, 100),
    "preference": (0, 1e6),
    "fluency": (0, 1e6),
    "slack": (0, 1e6),
    "diversity": (0, 1e6),
    "hit": (0, 1e6),
}
"""What a config may hold, from and to."""


def check(config: TuneConfig) -> None:
    """Refuse a config that nothing can be trained with.

    Raises:
        InputError: A number is out of bounds, or rows or groups do not divide a batch.
    """
    for entry in fields(config):
        low, high = BOUNDS.get(entry.name, (0, 0))
        value = getattr(config, entry.name)
        if entry.name in BOUNDS and not low <= value <= high:  # NaN too
            expected = f"a number from {low:g} to {high:g}"
            raise InputError("bad config", where=f"writer.{entry.name}", got=value, expected=expected)
    for name in ("rows", "group"):
        part = getattr(config, name, 1)
        if config.batch % part:
            expected = f"a multiple of {name}, {part}"
            raise InputError("bad config", where="writer.batch", got=config.batch, expected=expected)
