"""Learning from pairs: the writer directly, and a model of preferences."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hawker.agents.writer_config import DpoConfig, RewardModelConfig
from hawker.agents.writer_data import Pair
from hawker.agents.writer_prefs import PreferenceModel, _answer_ids, asked, dpo, fit_preferences
from hawker.policies.small_writer import small_model
from hawker.policies.writer import Writer, load_tokenizer
from hawker.shop.errors import InputError
from hawker.shop.run import Run

CPU = torch.device("cpu")
WORDS = ("pot", "hat", "lamp", "mat", "tea")
PAIRS = [Pair(f"Sell the {word} {i}", f"warm {word}", f"cold {word}") for word in WORDS for i in range(4)]
REWARD = RewardModelConfig(steps=12, batch=8, rows=8, rank=4, learning_rate=2e-2, checkpoint_every=3, device="cpu")
DPO = DpoConfig(steps=4, batch=4, rows=2, rank=4, learning_rate=2e-2, checkpoint_every=2, device="cpu")


def quiet(done: int, total: int, value: float) -> None:
    """Show nothing."""


def interrupt_at(step: int) -> Any:
    def progress(done: int, total: int, value: float) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def fitted(small_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return fit_preferences(Run(tmp_path_factory.mktemp("prefs")), str(small_lm), PAIRS, REWARD, False, quiet)


def test_preferences_are_learned_and_judged_on_unseen_prompts(fitted: tuple[Path, dict[str, Any]]):
    path, report = fitted
    figure = report["figures"]["prefs.accuracy"]
    assert figure["value"] == 1.0
    assert figure["n"] == 2  # a tenth of twenty
    model = PreferenceModel.load(path, CPU)
    prompt = asked(model.tokenizer, "Sell the kettle")
    scores = model.score([prompt] * 2, ["warm kettle", "cold kettle"])
    assert scores[0] > scores[1]
    assert model.score([prompt], ["cold kettle"]) == pytest.approx(scores[1:], abs=1e-5)  # alone as in company
    assert report["history"][0]["loss"] > report["history"][-1]["loss"]


def test_a_model_of_preferences_is_no_writer(fitted: tuple[Path, dict[str, Any]], small_lm: Path):
    with pytest.raises(InputError, match="a directory of another kind"):
        Writer.load(str(fitted[0]), CPU)
    with pytest.raises(InputError, match="a directory of another kind"):
        PreferenceModel.load(small_lm, CPU)


def test_preferences_interrupted_and_resumed(fitted: tuple[Path, dict[str, Any]], small_lm: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        fit_preferences(Run(tmp_path), str(small_lm), PAIRS, REWARD, False, interrupt_at(8))
    path, report = fit_preferences(Run(tmp_path), str(small_lm), PAIRS, REWARD, True, quiet)
    assert [entry["loss"] for entry in report["history"]] == [entry["loss"] for entry in fitted[1]["history"]]
    assert (path / "model.safetensors").read_bytes() == (fitted[0] / "model.safetensors").read_bytes()


def test_dpo_prefers_and_resumes(small_lm: Path, tmp_path: Path, nothing_global: None, no_network: None):
    pairs = [Pair("Sell the pot", "warm pot", "cold pot")]
    path, report = dpo(Run(tmp_path / "whole"), str(small_lm), pairs, DPO, False, quiet)
    assert report["history"][0]["loss"] == pytest.approx(np.log(2), abs=1e-5)  # it begins as its own reference
    assert report["history"][-1]["rewards/margins"] > 0
    with pytest.raises(KeyboardInterrupt):
        dpo(Run(tmp_path / "parts"), str(small_lm), pairs, DPO, False, interrupt_at(3))
    again, resumed = dpo(Run(tmp_path / "parts"), str(small_lm), pairs, DPO, True, quiet)
    assert [entry["loss"] for entry in resumed["history"]] == [entry["loss"] for entry in report["history"]]
    assert (again / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
    assert json.loads((path / "source.json").read_text())["made_from"] == str(small_lm)


def test_dpo_without_chat_template(tmp_path: Path):
    model = small_model(tmp_path / "plain", ["warm pot", "cold pot"], chat=False, pad=False)
    pairs = [Pair([{"role": "system", "content": "Sell"}, {"role": "user", "content": "the pot"}], "warm", "cold")]
    config = DpoConfig(**{**DPO.__dict__, "steps": 1})
    _, report = dpo(Run(tmp_path), str(model), pairs, config, False, quiet)
    assert report["history"][0]["loss"] == pytest.approx(np.log(2), abs=1e-5)


def test_prompts_take_the_form_of_the_tokenizer(small_lm: Path, tmp_path: Path):
    talks = load_tokenizer(small_lm)
    goes_on = load_tokenizer(small_model(tmp_path / "plain", ["warm"], chat=False))
    chat = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Sell it"}]
    assert asked(talks, "Sell it") == chat[1:]
    assert asked(talks, chat) == chat
    assert asked(goes_on, "Sell it") == "Sell it"
    assert asked(goes_on, chat) == "Be brief\n\nSell it"
    assert goes_on.decode(_answer_ids(goes_on, "Sell it", "now")) == "Sell it now<|end|>"


@pytest.mark.parametrize(
    ("pairs", "message"),
    [(PAIRS[:9], "too few pairs"), ([PAIRS[0]] * 12, "too few pairs .* got '12 pairs of 1 prompts', expected 10 of 2")],
    ids=["nine", "one prompt"],
)
def test_too_few_pairs(small_lm: Path, tmp_path: Path, pairs: list[Pair], message: str):
    with pytest.raises(InputError, match=message):
        fit_preferences(Run(tmp_path), str(small_lm), pairs, REWARD, False, quiet)


def test_no_pairs(small_lm: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no pairs to learn from"):
        dpo(Run(tmp_path), str(small_lm), [], DPO, False, quiet)
