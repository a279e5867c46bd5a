"""The writer, with tiny random models made on the spot."""

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hawker.policies import writer as module
from hawker.policies.briefs import SURFACES, Brief, messages, plain_prompt
from hawker.policies.prefix import go_on
from hawker.policies.small_writer import small_model
from hawker.policies.writer import Writer, answer_of, prompt_of, token_cap
from hawker.shop.artefacts import write_directory
from hawker.shop.errors import InputError

CPU = torch.device("cpu")
TEXTS = ["A quiet pot for slow mornings", "Warm wool for cold days", "Write a headline that makes people look"]
BRIEFS = [Brief("headline", title="Tea pot", price=20.0), Brief("title", title="Wool hat, " * 9, audience="new")]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("models") / "chat", TEXTS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No chat template, no padding token."""
    return small_model(tmp_path_factory.mktemp("models") / "plain", TEXTS, chat=False, pad=False)


@pytest.fixture(params=["chat", "plain"])
def writer(request: pytest.FixtureRequest) -> Writer:
    return Writer.load(str(request.getfixturevalue(request.param)), CPU)


@pytest.fixture
def broken(chat: Path, tmp_path: Path) -> Path:
    """A copy that may be broken; without checksums, as any model of the hub."""
    copy = Path(shutil.copytree(chat, tmp_path / "model"))
    (copy / "checksums.json").unlink()
    return copy


def test_prompt_and_answer(chat: Path, plain: Path):
    talks, goes_on = Writer.load(str(chat), CPU).tokenizer, Writer.load(str(plain), CPU).tokenizer
    assert prompt_of(talks, BRIEFS[0]) == messages(BRIEFS[0])
    assert prompt_of(goes_on, BRIEFS[0]) == plain_prompt(BRIEFS[0])
    assert answer_of(talks, "a pot") == [{"role": "assistant", "content": "a pot"}]
    assert answer_of(goes_on, "a pot") == " a pot"


def test_same_seed_same_lines(writer: Writer, nothing_global: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket.socket, "connect", None)  # nothing asks the network
    lines = writer.write(BRIEFS, count=3, seed=5)
    assert [len(some) for some in lines] == [3, 3]
    assert len({line for some in lines for line in some}) > 3
    assert writer.write(BRIEFS, count=3, seed=5) == lines
    assert writer.write(BRIEFS, count=3, seed=6) != lines


def test_temperature_0_takes_the_likeliest(writer: Writer):
    """The likeliest token by hand, one at a time and without padding or cache."""
    ids = writer._prompt_ids(BRIEFS[0])
    n = len(ids)
    with torch.no_grad():
        for _ in range(token_cap("headline")):
            ids.append(int(writer.model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in writer.ends:
                break
    said = writer.write([*BRIEFS, BRIEFS[0]], temperature=0)
    assert said[0] == said[2] == [writer.tokenizer.decode(ids[n:], skip_special_tokens=True).strip()]


def test_lines_end_at_the_cap_of_their_surface(writer: Writer, monkeypatch: pytest.MonkeyPatch):
    caps = []

    def recorded(model: Any, ids: torch.Tensor, mask: torch.Tensor, most: int, *options: Any) -> Any:
        caps.append((len(ids), most))
        return go_on(model, ids, mask, most, *options)

    monkeypatch.setattr("hawker.policies.writer.go_on", recorded)
    writer.write([BRIEFS[0], BRIEFS[1], BRIEFS[0]], count=2)
    assert caps == [(4, SURFACES["headline"].longest // 2), (2, SURFACES["title"].longest // 2)]


def test_it_gives_up_when_the_time_is_over(writer: Writer, nothing_global: None):
    expected, steps = writer.write(BRIEFS, seed=5), []
    hook = writer.model.register_forward_hook(lambda *_: steps.append(1))
    with pytest.raises(TimeoutError):
        writer.write(BRIEFS, seed=5, until=time.monotonic())
    assert not steps  # but for the reading of the prompt, nothing was computed
    hook.remove()
    assert writer.write(BRIEFS, seed=5, until=time.monotonic() + 600) == expected


def test_lines_are_told_as_they_end(writer: Writer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(vars(writer), "ends", list(range(50)))  # or hardly a line of random weights would end
    many, told = [BRIEFS[0], BRIEFS[1]] * 8, dict[int, str]()
    said = writer.write(many, seed=5, ended=told.__setitem__)
    assert 8 < len(told) <= 16
    assert told == {i: said[i][0] for i in told}  # each to its own brief
    order = list(told)
    assert order != sorted(order)  # the shorter first


def test_log_likelihood_by_hand(writer: Writer):
    lines = ["A quiet pot", "Warm", "", "wool for slow days and cold mornings"]
    nats, tokens = writer.log_likelihood(None, lines)
    given, _ = writer.log_likelihood([BRIEFS[0]] * 4, lines)
    assert np.isnan(nats[2])
    assert np.isnan(given[2])
    assert tokens[2] == 0
    space = "" if writer.tokenizer.chat_template else " "
    for i in (0, 1, 3):
        for start, text, got in (([0], lines[i], nats[i]), (writer._prompt_ids(BRIEFS[0]), space + lines[i], given[i])):
            ids = writer.tokenizer(text)["input_ids"]
            with torch.no_grad():
                log_probs = writer.model(torch.tensor([start + ids])).logits[0].log_softmax(-1)
            by_hand = [float(log_probs[len(start) - 1 + k, token]) for k, token in enumerate(ids)]
            assert got == pytest.approx(np.mean(by_hand), abs=1e-5)
    assert tokens[0] == len(writer.tokenizer(lines[0])["input_ids"])
    assert writer.log_likelihood(None, [])[0].shape == (0,)


def test_likelihoods_do_not_depend_on_the_batch(writer: Writer, monkeypatch: pytest.MonkeyPatch):
    lines = ["A quiet pot", "Warm", "wool for slow days \ud800", "x" * 300]
    together = writer.log_likelihood([*BRIEFS, *BRIEFS], lines)[0]
    monkeypatch.setattr(module, "POSITIONS", 1)
    assert writer.log_likelihood([*BRIEFS, *BRIEFS], lines)[0] == pytest.approx(together, abs=1e-4)


def test_save_and_load(writer: Writer, tmp_path: Path):
    writer.save(tmp_path / "copy", "the first one")
    again = Writer.load(str(tmp_path / "copy"), CPU)
    assert again.write(BRIEFS, seed=1) == writer.write(BRIEFS, seed=1)
    assert json.loads((tmp_path / "copy/source.json").read_text())["made_from"] == "the first one"
    assert str(tmp_path) not in (tmp_path / "copy/config.json").read_text()
    assert not [path for path in (tmp_path / "copy").iterdir() if path.suffix in {".bin", ".pt", ".py"}]
    (tmp_path / "copy/config.json").write_text("{}")
    with pytest.raises(InputError, match="changed after it was written"):
        Writer.load(str(tmp_path / "copy"), CPU)


@pytest.mark.parametrize(("units", "wide", "fast"), [(True, 32, True), (True, 33, False), (False, 32, False)])
def test_numbers_to_compute_in(units: bool, wide: int, fast: bool, chat: Path, monkeypatch: pytest.MonkeyPatch):
    """bfloat16 on a CPU with units for it, where a model is wide enough; what it finds likely stays close."""
    exact = Writer.load(str(chat), CPU).log_likelihood(None, TEXTS)[0]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": units}, raising=False)
    monkeypatch.setattr(module, "WIDE", wide)
    loaded = Writer.load(str(chat), CPU)
    assert loaded.model.dtype == (torch.bfloat16 if fast else torch.float32)
    assert loaded.log_likelihood(None, TEXTS)[0] == pytest.approx(exact, abs=0.02 if fast else 1e-6)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # as peft makes the adapter
def test_an_adapter_is_merged(chat: Path, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    writer, adapted = (Writer.load(str(chat), CPU) for _ in range(2))
    lora: Any = LoraConfig
    with torch.random.fork_rng(devices=[]):
        tuned: Any = get_peft_model(adapted.model, lora(r=2, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    merged = Writer.load(str(chat), CPU, tmp_path / "adapter")
    lines = ["a quiet pot", "cold days"]
    expected = Writer("", chat, tuned.eval(), writer.tokenizer, CPU).log_likelihood(None, lines)[0]
    assert merged.log_likelihood(None, lines)[0] == pytest.approx(expected, abs=1e-5)
    assert merged.log_likelihood(None, lines)[0] != pytest.approx(writer.log_likelihood(None, lines)[0], abs=1e-5)
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="not a LoRA adapter"):
        Writer.load(str(chat), CPU, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2-135m", "no such language model; .* did you mean 'smollm2-135m'"),
        ("smollm2-135m", "the model is not on this machine; run hawker model fetch smollm2-135m"),
        ("", "no such language model"),
    ],
)
def test_no_such_model(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HAWKER_HOME", str(tmp_path))
    with pytest.raises(InputError, match=message):
        Writer.load(name, CPU)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"org/model: the model hub does not give the model .*no route to host"):
        Writer.load("org/model", CPU)


def test_a_directory_that_is_no_model(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match="not a language model"):
        Writer.load(str(tmp_path), CPU)
    with write_directory(tmp_path / "shoppers", "shoppers") as scratch:
        (scratch / "config.json").write_text("{}")
        (scratch / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="a directory of another kind"):
        Writer.load(str(tmp_path / "shoppers"), CPU)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_damaged_files(broken: Path, file: str):
    (broken / file).write_bytes(b"{")
    with pytest.raises(InputError, match="transformers cannot read the model"):
        Writer.load(str(broken), CPU)


def test_a_tokenizer_without_an_end(broken: Path):
    settings = json.loads((broken / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (broken / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="the tokenizer has no end-of-text token"):
        Writer.load(str(broken), CPU)


def test_a_chat_template_that_refuses(broken: Path):
    (broken / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(InputError, match="no system role"):
        Writer.load(str(broken), CPU).write(BRIEFS)


def test_a_brief_too_long_for_the_model(broken: Path):
    settings = json.loads((broken / "tokenizer_config.json").read_text())
    (broken / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 40}))
    with pytest.raises(InputError, match=r"the prompt of 'Tea pot' is too long for the model; got .* at most 10"):
        Writer.load(str(broken), CPU).write(BRIEFS)


def test_weights_that_are_not_finite(writer: Writer):
    with torch.no_grad():
        writer.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(InputError, match="the model gives no finite probabilities"):
        writer.write(BRIEFS)


@pytest.mark.parametrize(("count", "temperature"), [(0, 1.0), (1, -1.0), (1, float("nan"))])
def test_what_cannot_be_written(writer: Writer, count: int, temperature: float):
    with pytest.raises(InputError, match="cannot write so"):
        writer.write(BRIEFS, count, temperature)


def test_short_of_memory_batches_are_halved(writer: Writer, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    batch = writer._batch

    def small(prompts: list[list[int]], cap: int, temperature: float, until: float) -> list[str]:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return batch(prompts, cap, temperature, until)

    monkeypatch.setattr(writer, "_batch", small)
    assert len(writer.write(BRIEFS[:1], count=5)[0]) == 5
    assert sizes == [5, 2, 2, 1]


def test_short_of_memory_for_a_single_line(writer: Writer, monkeypatch: pytest.MonkeyPatch):
    def none(*_: object) -> list[str]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(writer, "_batch", none)
    with pytest.raises(InputError, match="not enough memory for one line"):
        writer.write(BRIEFS)
