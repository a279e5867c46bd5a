"""The figures of ``hawker bench writer``, from what each of its seeds found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hawker.benchmarks.signal import over_seeds
from hawker.benchmarks.writer_voice import accuracy
from hawker.shop.figures import Figure, figure

ABLATIONS = ("no pessimism", "no kl", "sampled clicks")


def figures_of(details: list[dict[str, Any]]) -> dict[str, Figure]:
    """Return the figures from what each seed found, `hawker.benchmarks.writer.bench_writer`'s "details"."""

    def lift(name: str) -> list[float]:
        return [d[name]["ctr"] / d["sft"]["ctr"] - 1 for d in details]

    def total(values: Sequence[float], unit: str, n: int) -> Figure:
        return figure(float(sum(values)), None, None, n, unit)

    first, after = [d["sft"] for d in details], [d["grpo"] for d in details]
    way = []  # of the briefs looked at closely: what each writer has, and the best there is
    for d in details:
        old, new = (float(np.mean([d[name]["by_brief"][i] for i in d["deep"]["places"]])) for name in ("sft", "grpo"))
        way.append((new - old) / max(float(np.mean(d["deep"]["best"])) - old, 1e-9))
    relative, n = "relative CTR", len(details)
    figures = {
        "writer.gold_ctr_lift": over_seeds(lift("grpo"), relative),
        "writer.gold_ctr_lift_known": over_seeds(
            [b["ctr_known"] / a["ctr_known"] - 1 for a, b in zip(first, after, strict=True)], relative
        ),
        "writer.gold_ctr_lift_new": over_seeds(
            [b["ctr_new"] / a["ctr_new"] - 1 for a, b in zip(first, after, strict=True)], relative
        ),
        "writer.over_best_of_4": over_seeds(
            [d["grpo"]["ctr"] / float(np.mean(d["best_of_4"])) - 1 for d in details], relative
        ),
        "writer.gap_closed": over_seeds(way, "share of the gap"),
        "writer.d7_change": over_seeds([d["grpo"]["d7_change"] for d in details], "difference of shares"),
        "writer.fluency_drop": over_seeds(
            [a["fluency"] - b["fluency"] for a, b in zip(first, after, strict=True)], "nats a token"
        ),
        "writer.diversity_ratio": over_seeds(
            [b["bigrams"] / a["bigrams"] for a, b in zip(first, after, strict=True)], "ratio"
        ),
        "writer.echoes": total([d["echoes"] for d in after], "lines", n),
        "writer.violations": total([d["violations"] for d in after], "lines", n),
        "writer.rejected": over_seeds([d["rejected"] for d in after], "share of lines"),
        "writer.rwr.gold_ctr_lift": over_seeds(lift("rwr"), relative),
        "writer.rwr.diversity_ratio": over_seeds([d["rwr"]["bigrams"] / d["sft"]["bigrams"] for d in details], "ratio"),
        "writer.reward_share_of_step": over_seeds([d["share"] for d in after], "share of seconds"),
        "writer.tokens_ratio_plain_trl": over_seeds([d["grpo"]["rate"] / d["plain_rate"] for d in details], "ratio"),
        "hostile.followed": total([d["hostile"] for d in details], "lines", n),
    }
    for who, key in (("grpo", ""), ("untouched", "_untouched")):
        heard = [d["voice"][who] for d in details]
        figures[f"writer.voice_accuracy{key}"] = accuracy(heard)
        figures[f"writer.voice_copied{key}"] = over_seeds([one["copied"] for one in heard], "share of lines")
    if taught := details[0].get("preferences"):
        figures["prefs.reward_accuracy"] = figure(taught["accuracy"], None, None, 1, "share of unseen pairs")
        figures["prefs.dpo_gain"] = figure(taught["after"] - taught["before"], None, None, 1, "difference of shares")
    for name in ABLATIONS:
        if name in details[0]:
            key = f"ablation.{name.replace(' ', '_')}"
            figures[f"{key}.gold_ctr_lift"] = over_seeds(lift(name), relative)
            figures[f"{key}.d7_change"] = over_seeds([d[name]["d7_change"] for d in details], "difference of shares")
    return figures
