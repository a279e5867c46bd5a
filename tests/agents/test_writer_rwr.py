"""Reward-weighted regression: which of its own lines a writer learns from, and what for whom comes of it."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hawker.agents import writer_rwr
from hawker.agents.writer_config import RwrConfig, SftConfig
from hawker.agents.writer_data import Assignment, LoggedLine
from hawker.agents.writer_rwr import draw_best, rwr
from hawker.agents.writer_sft import sft
from hawker.policies.briefs import Brief
from hawker.policies.guardrails import Guardrails
from hawker.policies.writer import Writer
from hawker.shop.config import load_config
from hawker.shop.errors import InputError
from hawker.shop.run import Run

CPU, RULES = torch.device("cpu"), Guardrails.load()
ASSIGNMENTS = [Assignment(name, Brief("headline", title=name)) for name in ("pot", "hat", "lamp", "rug")]
QUIET, WARM = "A quiet pot for slow mornings", "Warm wool for cold days"
CONFIG = RwrConfig(
    steps=4, batch=8, rows=8, rank=4, lines=4, together=2, learning_rate=1e-2, checkpoint_every=2, device="cpu"
)


def quiet(done: int, total: int, value: float) -> None:
    """Show nothing."""


def for_whom(items: Sequence[str], audiences: Any, discounts: Any, lines: Sequence[str]) -> Any:
    """Who buys pots and lamps likes quiet, who buys hats and rugs likes warmth."""
    liked = {"pot": "quiet", "lamp": "quiet", "hat": "Warm", "rug": "Warm"}
    return {"total": np.array([0.1 + 0.05 * (liked[item] in line) for item, line in zip(items, lines, strict=True)])}


@pytest.fixture(scope="module")
def fluent(small_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a writer who has learned two lines, for whatever item."""
    logged = [LoggedLine(each.brief, line, 1, 1, 1.0, 1.0) for each in ASSIGNMENTS for line in (QUIET, WARM)]
    tuning = SftConfig(steps=80, batch=8, rows=8, rank=0, learning_rate=1e-2, decay=False, device="cpu")
    path, _ = sft(Run(tmp_path_factory.mktemp("fluent")), str(small_lm), logged, RULES, tuning, False, quiet)
    return path


def run_rwr(where: Path, model: Path, config: RwrConfig = CONFIG, resume: bool = False, **options: Any) -> Any:
    options = {"answers": for_whom, "guardrails": RULES, "progress": quiet, "assignments": ASSIGNMENTS} | options
    return rwr(Run(where), str(model), config=config, resume=resume, **options)


@pytest.fixture(scope="module")
def trained(fluent: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path, report = run_rwr(tmp_path_factory.mktemp("rwr"), fluent)
    return path, report


def draw(worth: list[list[float]], n: int, pairs: Any = None, **options: Any) -> list[tuple[int, int]]:
    config = RwrConfig(**{"steps": n // 2, "batch": 2, "rows": 2, "together": 2, "novelty": 0.0} | options)
    pairs = [[set() for _ in each] for each in worth] if pairs is None else pairs
    return draw_best(np.array(worth), pairs, config, np.random.default_rng(0))


def test_lines_are_drawn_as_often_as_they_are_worth():
    """With beta .5 a line that is worth .5 more is drawn e times as often; what is not known never."""
    none = -np.inf
    drawn = draw([[0.0, 0.5, none], [none, none, none], [2.0, 2.0, 2.0]], 20_000, beta=0.5)
    assert len(drawn) == 20_000
    often = Counter(drawn)
    assert {brief for brief, _ in often} == {0, 2}
    assert often[0, 1] / often[0, 0] == pytest.approx(np.e, rel=0.05)
    assert often[0, 2] == 0
    assert sum(often[0, j] for j in range(3)) == 10_000
    assert all(drawn[i][0] == drawn[i + 1][0] for i in range(0, 20_000, 2))
    assert {brief for brief, _ in drawn[:4]} == {0, 2}  # every brief once before any twice


def test_without_beta_the_best_alone_is_drawn():
    assert set(draw([[0.0, 0.1, 0.05]], 10, beta=0.0)) == {(0, 1)}


def test_what_is_new_is_worth_more_until_it_was_said():
    """Two pairs, the one worth .3 less: with .5 a new pair, halved and so on, it takes its turn while it is rare."""
    pairs = [[{("warm", "wool")}, {("old", "rope")}]]
    drawn = draw([[0.3, 0.0]], 12, pairs, beta=0.0, together=1, novelty=1.0)
    # .3 + 1 against 1; .3 + 1/2 against 1; .3 + 1/2 against 1/2; .3 + 1/3 against 1/2; ...
    assert [j for _, j in drawn[:4]] == [0, 1, 0, 0]
    assert [j for _, j in drawn].count(1) == 2
    assert {j for _, j in draw([[0.3, 0.0]], 12, pairs, beta=0.0, together=1)} == {0}


def test_it_learns_what_is_good_for_whom(fluent: Path, tmp_path: Path):
    config = RwrConfig(**{**CONFIG.__dict__, "steps": 160, "batch": 16, "rows": 16, "lines": 16, "rank": 0})
    path, report = run_rwr(tmp_path, fluent, config, assignments=ASSIGNMENTS * 4)  # some of each in both rounds
    assert report["gains"][0] > 0.3  # lines of no such words are possible, too
    assert len(report["gains"]) == 2
    assert report["written"] == 16 * 16
    briefs = [each.brief for each in ASSIGNMENTS]

    def right(model: Path) -> int:
        said = Writer.load(str(model), CPU).write(briefs, 32)
        return sum(word in line for word, lines in zip(("quiet", "Warm") * 2, said, strict=True) for line in lines)

    assert right(path) > right(fluent) + 20


def test_what_the_rules_refuse_is_not_learned_from(fluent: Path, tmp_path: Path):
    """Shoppers like what the rules refuse: it is worth less than any other line."""
    refusing: Any = SimpleNamespace(
        digest="", tidy=str.strip, hits=lambda line, brief: [SimpleNamespace(rule="warm")] * ("Warm" in line)
    )
    config = RwrConfig(**{**CONFIG.__dict__, "steps": 30, "batch": 16, "rows": 16, "lines": 16, "rank": 0})

    def keen(items: Any, audiences: Any, discounts: Any, lines: Sequence[str]) -> Any:
        return {"total": np.array([0.1 + ("Warm" in line) for line in lines])}

    path, _ = run_rwr(tmp_path, fluent, config, guardrails=refusing, answers=keen)
    before, after = (
        sum(
            "Warm" in line
            for lines in Writer.load(str(model), CPU).write([each.brief for each in ASSIGNMENTS], 16)
            for line in lines
        )
        for model in (fluent, path)
    )
    assert after < before / 3


def test_same_seed_same_weights_and_nothing_global(
    trained: tuple[Path, dict[str, Any]],
    fluent: Path,
    small_lm: Path,
    tmp_path: Path,
    nothing_global: None,
    no_network: None,
    capfd: pytest.CaptureFixture[str],
):
    path, report = run_rwr(tmp_path, fluent)
    assert [entry["loss"] for entry in report["history"]] == [entry["loss"] for entry in trained[1]["history"]]
    assert (path / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()
    assert capfd.readouterr() == ("", "")
    assert json.loads((path / "train.json").read_text()) == report
    assert json.loads((path / "source.json").read_text())["made_from"] == str(small_lm)  # not the tuned one
    assert {item.name for item in (tmp_path / "writer").iterdir()} == {
        "rwr",
        "rwr-checkpoint",
        "rwr-1",
        "rwr-1-checkpoint",
    }


def test_interrupted_and_resumed(trained: tuple[Path, dict[str, Any]], fluent: Path, tmp_path: Path):
    """Killed in its second round."""
    steps = list[int]()

    def interrupt(done: int, total: int, value: float) -> None:
        steps.append(done)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_rwr(tmp_path, fluent, progress=interrupt)
    assert steps == [1, 2, 1]
    path, _ = run_rwr(tmp_path, fluent, resume=True)
    assert (path / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()


def test_a_model_of_preferences_is_asked(fluent: Path, tmp_path: Path):
    asked: list[int] = []

    def score(prompts: Sequence[Any], lines: Sequence[str]) -> Any:
        asked.append(len(lines))
        return np.array(["Warm" in line for line in lines], float)

    config = RwrConfig(**{**CONFIG.__dict__, "steps": 1, "preference": 5.0})
    _, report = run_rwr(tmp_path, fluent, config, preferences=SimpleNamespace(score=score, digest="taste"))
    assert sum(asked) > 0
    assert report["level"]["preference"] > 0


def test_refused(fluent: Path, tmp_path: Path):
    with pytest.raises(InputError, match="nothing to write for"):
        run_rwr(tmp_path, fluent, assignments=[])
    with pytest.raises(InputError, match=r"writer.lines: bad config; got 1"):
        run_rwr(tmp_path, fluent, RwrConfig(**{**CONFIG.__dict__, "lines": 1}))
    strict: Any = SimpleNamespace(digest="", tidy=str.strip, hits=lambda line, brief: [SimpleNamespace(rule="all")])
    with pytest.raises(
        InputError, match="the rules refuse every line that the writer wrote; begin with a writer tuned"
    ):
        run_rwr(tmp_path, fluent, guardrails=strict)

    def unknown(items: Sequence[str], *_: Any) -> Any:
        return {"total": np.full(len(items), np.nan)}

    with pytest.raises(InputError, match="the shoppers' answers are not finite"):
        run_rwr(tmp_path, fluent, answers=unknown)
    assert not list(tmp_path.iterdir())


def test_each_round_writes_for_briefs_of_its_own_with_what_the_last_has_learned(
    fluent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked, drew = list[list[str]](), list[RwrConfig]()

    def watched(worth: Any, pairs: Any, config: RwrConfig, generator: np.random.Generator) -> Any:
        drew.append(config)
        return draw_best(worth, pairs, config, generator)

    monkeypatch.setattr(writer_rwr, "draw_best", watched)

    def listening(items: Sequence[str], audiences: Any, discounts: Any, lines: Sequence[str]) -> Any:
        asked.append(list(items))
        return for_whom(items, audiences, discounts, lines)

    config = RwrConfig(**{**CONFIG.__dict__, "steps": 7, "briefs": 3, "rounds": 3})
    path, report = run_rwr(tmp_path, fluent, config, answers=listening)
    assert report["written"] == 3 * 4
    stages = [tmp_path / "writer" / name for name in ("rwr-1", "rwr-2", "rwr")]
    assert path == stages[-1]
    told = [json.loads((stage / "train.json").read_text()) for stage in stages]
    assert [each["steps"] for each in told] == [3, 2, 2]
    assert [each["model"] for each in told] == [str(fluent), str(stages[0]), str(stages[1])]
    assert told[-1]["gains"][:2] == told[1]["gains"]
    kept = [load_config(RwrConfig, stage / "config.yaml") for stage in stages]
    assert [each.novelty for each in drew] == [config.novelty, 2 * config.novelty, 3 * config.novelty]
    assert kept[:2] == drew[:2]
    assert kept[2] == config  # the whole, to be repeated
    rounds = list(dict.fromkeys(frozenset(items) for items in asked))
    assert [len(items) for items in rounds] == [1, 1, 1]
    assert len(frozenset.union(*rounds)) == 3


def test_an_item_that_shoppers_have_no_answer_to_is_passed_over(fluent: Path, tmp_path: Path):
    calls = []

    def some(items: Sequence[str], audiences: Any, discounts: Any, lines: Sequence[str]) -> Any:
        answers = for_whom(items, audiences, discounts, lines)
        calls.append(len(lines))
        return answers if len(calls) == 1 else {"total": np.where(np.array(items) == "pot", np.nan, answers["total"])}

    path, report = run_rwr(tmp_path, fluent, answers=some)
    assert np.isfinite(report["gains"]).all()
    assert path.is_dir()
