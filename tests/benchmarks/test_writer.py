"""The writer's benchmark: the whole of it in small."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hawker.agents.writer_config import SftConfig
from hawker.app.writer_page import write_page
from hawker.benchmarks import writer
from hawker.benchmarks.bazaar import logging_strategy
from hawker.benchmarks.fidelity_artefacts import Fit
from hawker.benchmarks.writer import QUICK, bench_writer
from hawker.policies.small_writer import small_model
from hawker.shop.artefacts import write_directory
from hawker.shop.context import Context, ContextBuilder
from hawker.shop.errors import InputError
from hawker.shop.language import HashedEncoder
from hawker.shop.lines import Lines
from hawker.shop.logs import read_logs
from hawker.simulators.appeal import ARCHITECTURES, Recorded
from hawker.simulators.bazaar import BazaarWorld
from hawker.simulators.config import FitConfig
from hawker.simulators.diary import write_logs
from hawker.simulators.rows import encode_log
from hawker.simulators.shopper import IDENTITY, Ensemble, ShopperModel
from hawker.simulators.store import FittedShoppers
from hawker.simulators.support import Support

CPU = torch.device("cpu")
FLUENT = SftConfig(steps=80, batch=8, rows=8, rank=0, learning_rate=1e-2, decay=False)
"""Enough for a tiny model to say what the log says: with nothing but refused lines there is nothing to learn from."""


def test_no_model_is_one_clear_line_before_anything_is_fitted():
    with pytest.raises(InputError, match="no-such-model"):
        bench_writer(replace(QUICK, model="no-such-model"), lambda line: None)


def test_no_seeds_are_refused():
    with pytest.raises(InputError, match=r"writer\.seeds"):
        bench_writer(replace(QUICK, seeds=()), lambda line: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, bazaar: BazaarWorld) -> Path:
    """A directory with a small log, shoppers that have learned nothing of it, and a tiny language model."""
    folder = tmp_path_factory.mktemp("writer")
    write_logs(bazaar, logging_strategy(bazaar, "popularity"), folder / "logs", 60, 21, 1)
    logs, encoder = read_logs(folder / "logs"), HashedEncoder()
    frame = logs.impressions
    builder, lines = ContextBuilder.fit(frame, logs.items, encoder), Lines.from_impressions(frame, encoder)
    recorded = Recorded.of(encode_log(frame, builder, lines, CPU).rows)

    def ensemble(first: int) -> Ensemble:
        return Ensemble(
            [
                ShopperModel(builder, 8, ARCHITECTURES[k], 0.1, torch.Generator().manual_seed(k), recorded, lines)
                for k in (first, first + 1)
            ],
            IDENTITY.clone(),
        )

    shopper = torch.from_numpy(builder.encode_shoppers(frame))[::200]
    candidates = torch.arange(30).expand(len(shopper), -1)
    arrivals = Context(shopper, candidates, torch.ones_like(candidates).bool(), torch.zeros(candidates.shape))
    support = Support.from_impressions(frame, builder.catalog, lines, recorded.offers)
    roles = {"train": ensemble(0), "judge": ensemble(2)}
    fitted = FittedShoppers(
        builder,
        8,
        FitConfig(members=2),
        roles,
        dict.fromkeys(roles, arrivals),
        folder / "logs",
        logs.digest,
        support,
        lines,
    )
    with write_directory(folder / "shoppers", "shoppers") as scratch:
        fitted.save(scratch)
    small_model(folder / "model", [*lines.texts, "Item: Category: Details: Price: Offer: Written for"])
    return folder


@pytest.mark.slow
def test_the_whole_of_it_in_small(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "cached_logs", lambda *_: made / "logs")
    monkeypatch.setattr(writer, "cached_fit", lambda *_: Fit(made / "shoppers", 0.0, 0.0, 0, reused=True))
    told: list[str] = []
    report = bench_writer(replace(QUICK, model=str(made / "model"), sft=FLUENT), told.append, ablations=True)
    figures = report["figures"]
    assert figures["writer.violations"]["value"] == 0
    assert figures["writer.echoes"]["value"] == 0
    assert figures["hostile.followed"]["value"] == 0
    assert figures["writer.tokens_ratio_plain_trl"]["value"] > 0
    assert {f"ablation.{name}.gold_ctr_lift" for name in ("no_pessimism", "no_kl", "sampled_clicks")} <= set(figures)
    assert len(report["samples"]) == QUICK.judged
    assert len(report["details"][0]["grpo"]["curve"]) >= QUICK.grpo.steps
    points = report["details"][0]["points"]
    assert [point["at"] for point in points] == ["sft", "rwr", 1, "grpo"]
    assert points[0]["kl"] == 0
    assert all({"proxy", "proxy_click", "gold", "gold_click"} < set(point) for point in points)
    assert figures["writer.voice_accuracy"]["n"] > 0
    assert any(line.startswith("seed 31: grpo: gold CTR") for line in told)
    page = made / "writer.html"
    write_page(report, page)
    assert '"sft","rwr","step 1","grpo"' in page.read_text(), "its points by name"
