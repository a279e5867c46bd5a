"""Preferences with a hidden rule: does a model of preferences find it, and does DPO teach it to the writer?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from hawker.agents.writer_config import DpoConfig, RewardModelConfig
from hawker.agents.writer_data import Pair
from hawker.agents.writer_prefs import PreferenceModel, dpo, fit_preferences
from hawker.policies.briefs import Brief, messages
from hawker.policies.guardrails import Guardrails, words
from hawker.policies.writer import Writer
from hawker.shop.run import Run

FLIPPED = 0.2
"""Share of the pairs whose preference is turned round."""

PLAIN = (
    "{} in plain sight",
    "A {} and nothing else",
    "The {} of the season",
    "Simply a {}",
    "{} for slow mornings",
    "Everyone's next {}",
    "Found at last: {}",
    "A {} to trust",
    "The {} that lasts",
    "All about the {}",
    "{} for any weekend",
    "One {} for every day",
    "{} with a story",
    "Meet the {}",
)
WARM = (
    "{} for your mornings",
    "Your next {}",
    "You found it: {}",
    "A {} you can trust",
    "The {} that suits you",
    "All you want in a {}",
    "{} for your weekend",
    "One {} for all your days",
    "See you with this {}",
    "{} at your side",
    "Your home and this {}",
    "Treat your day to a {}",
    "{}, made for you",
    "Make it your {}",
)
"""Lines that do not address the reader, and lines that do, so many that little but the rule tells them apart; the last
two of each are kept for judging."""

_KEPT = 2


def addresses_reader(line: str) -> bool:
    """The hidden rule: the better line says "you" or "your"."""
    return bool({"you", "your"} & set(words(line)))


def synthetic_pairs(briefs: Sequence[Brief], n: int, seed: int, *, judging: bool = False) -> list[Pair]:
    """Return n pairs in which one line keeps to the rule.

    Args:
        briefs: What they are answers to.
        n: How many.
        seed: Decides lines, order and which are turned round.
        judging: Pairs to judge by: of other lines, none turned round.
    """
    generator = np.random.default_rng(seed)
    plain, warm = (forms[-_KEPT:] if judging else forms[:-_KEPT] for forms in (PLAIN, WARM))
    pairs = []
    for i in range(n):
        brief = briefs[i % len(briefs)]
        good, bad = (str(forms[generator.integers(len(forms))]).format(brief.title) for forms in (warm, plain))
        if not judging and generator.random() < FLIPPED:
            good, bad = bad, good
        pairs.append(Pair(messages(brief), good, bad))
    return pairs


def hidden_rule(
    run: Run,
    model: str,
    learned: Sequence[Brief],
    unseen: Sequence[Brief],
    pairs: int,
    reward: RewardModelConfig,
    tune: DpoConfig,
    device: torch.device,
    told: Callable[[str], None],
) -> dict[str, float]:
    """Learn the rule from pairs, as a model of preferences and by DPO.

    Args:
        run: Gets both models.
        model: The writer to begin with.
        learned: Briefs of the pairs.
        unseen: Briefs to judge by; none of the pairs' items.
        pairs: How many pairs.
        reward: How the model of preferences is trained.
        tune: How DPO trains.
        device: Where writers write.
        told: Called with a line now and then.

    Returns:
        ``accuracy``: share of unseen pairs that the model ranks by the rule; ``before`` and ``after``: share of the
        writer's lines for unseen briefs that keep to the rule, before and after DPO.
    """
    made = synthetic_pairs(learned, pairs, reward.seed)
    path, _ = fit_preferences(run, model, made, reward, False, lambda *_: None)
    scorer, judged = PreferenceModel.load(path, device), synthetic_pairs(unseen, 4 * len(unseen), 1, judging=True)
    margin = scorer.score([pair.prompt for pair in judged], [pair.chosen for pair in judged])
    margin = margin - scorer.score([pair.prompt for pair in judged], [pair.rejected for pair in judged])
    del scorer
    told(f"preferences: {float((margin > 0).mean()):.3f} of {len(judged)} unseen pairs")
    tuned, _ = dpo(run, model, made, tune, False, lambda *_: None)
    guardrails, kept = Guardrails.load(), {}
    for name, which in (("before", model), ("after", str(tuned))):
        said = Writer.load(which, device).write(unseen, 4, 1.0, tune.seed)
        kept[name] = float(np.mean([addresses_reader(guardrails.tidy(text)) for texts in said for text in texts]))
    told(f"DPO: {kept['before']:.3f} of the lines keep to the rule before, {kept['after']:.3f} after")
    return {"accuracy": float((margin > 0).mean()), **kept}
