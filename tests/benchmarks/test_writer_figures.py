"""The arithmetic of the writer's figures, by hand."""

import pytest

from hawker.benchmarks.writer_figures import figures_of


def detail(shift: float) -> dict:
    first = {"ctr": 0.10, "ctr_known": 0.12, "ctr_new": 0.08, "by_brief": [0.10, 0.05, 0.15], "fluency": -3.0}
    first |= {"bigrams": 1000, "echoes": 5, "violations": 9, "rejected": 0.3}
    after = {"ctr": 0.11 + shift, "ctr_known": 0.15, "ctr_new": 0.09, "by_brief": [0.12, 0.05, 0.18], "fluency": -3.2}
    after |= {"bigrams": 900, "echoes": 1, "violations": 0, "rejected": 0.05, "share": 0.04, "rate": 95.0}
    after |= {"d7_change": -0.002}
    return {
        "sft": first,
        "rwr": after | {"ctr": 0.12, "bigrams": 950},
        "grpo": after,
        "no kl": after | {"ctr": 0.09},
        "best_of_4": [0.10, 0.11, 0.12],
        "deep": {"places": [0, 2], "best": [0.2, 0.25]},
        "hostile": 2,
        "plain_rate": 100.0,
        "voice": {
            "grpo": {"right": [[2, 2], [1, 1]], "of": [[2, 2], [2, 2]], "copied": 0.1},
            "untouched": {"right": [[1, 1], [1, 1]], "of": [[2, 2], [2, 2]], "copied": 0.0},
        },
        "preferences": {"accuracy": 0.9, "before": 0.2, "after": 0.7},
    }


def test_figures_by_hand():
    figures = {name: one["value"] for name, one in figures_of([detail(0.0), detail(0.01)]).items()}
    assert figures["writer.gold_ctr_lift"] == pytest.approx((0.1 + 0.2) / 2)
    assert figures["writer.rwr.gold_ctr_lift"] == pytest.approx(0.2)
    assert figures["writer.rwr.diversity_ratio"] == pytest.approx(0.95)
    assert figures["writer.gold_ctr_lift_known"] == pytest.approx(0.25)
    assert figures["writer.gold_ctr_lift_new"] == pytest.approx(0.125)
    assert figures["writer.over_best_of_4"] == pytest.approx((0.0 + 0.12 / 0.11 - 1) / 2)
    assert figures["writer.gap_closed"] == pytest.approx((0.15 - 0.125) / (0.225 - 0.125))
    assert figures["writer.d7_change"] == pytest.approx(-0.002)
    assert figures["writer.fluency_drop"] == pytest.approx(0.2)
    assert figures["writer.diversity_ratio"] == pytest.approx(0.9)
    assert figures["writer.echoes"] == 2
    assert figures["writer.violations"] == 0
    assert figures["writer.rejected"] == pytest.approx(0.05)
    assert figures["writer.reward_share_of_step"] == pytest.approx(0.04)
    assert figures["writer.tokens_ratio_plain_trl"] == pytest.approx(0.95)
    assert figures["hostile.followed"] == 4
    assert figures["writer.voice_accuracy"] == pytest.approx(0.75)
    assert figures["writer.voice_copied"] == pytest.approx(0.1)
    assert figures["writer.voice_accuracy_untouched"] == pytest.approx(0.5)
    assert figures["writer.voice_copied_untouched"] == 0
    assert figures["prefs.reward_accuracy"] == 0.9
    assert figures["prefs.dpo_gain"] == pytest.approx(0.5)
    assert figures["ablation.no_kl.gold_ctr_lift"] == pytest.approx(-0.1)
    assert "ablation.no_pessimism.gold_ctr_lift" not in figures
    assert figures_of([detail(0.0), detail(0.01)])["writer.gold_ctr_lift"]["low"] < 0.1
