from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hawker.shop.config import from_dict, load_config, save_config, to_dict
from hawker.shop.errors import InputError


@dataclass(frozen=True)
class Reward:
    click: float = 1.0
    response: Literal["expected", "sampled"] = "expected"


@dataclass(frozen=True)
class Options:
    steps: int = 100
    rate: float = 1e-5
    name: str = "auto"
    resume: bool = False
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    tags: tuple[str, ...] = ()
    limit: int | None = None
    out: Path | None = None
    reward: Reward = field(default_factory=Reward)


@dataclass(frozen=True)
class Needy:
    steps: int
    seed: int = 0


finite = st.floats(allow_nan=False, allow_infinity=False)
options = st.builds(
    Options,
    steps=st.integers(),
    rate=finite,
    name=st.text(),
    resume=st.booleans(),
    shares=st.tuples(finite, finite, finite),
    tags=st.lists(st.text()).map(tuple),
    limit=st.none() | st.integers(),
    out=st.none() | st.just(Path("runs/demo")),
    reward=st.builds(Reward, click=finite, response=st.sampled_from(["expected", "sampled"])),
)


@given(options)
def test_a_config_survives_its_yaml(config: Options):
    text = yaml.safe_dump(to_dict(config))
    assert from_dict(Options, yaml.safe_load(text), "here") == config


def test_a_config_survives_its_file(tmp_path: Path):
    config = Options(tags=("ä", "1e-3"), out=Path("runs/demo"), reward=Reward(2.0, "sampled"))
    save_config(config, tmp_path / "deep" / "config.yaml")
    assert load_config(Options, tmp_path / "deep" / "config.yaml") == config
    assert (tmp_path / "deep" / "config.yaml").read_text().startswith("steps: 100\nrate: 1.0e-05\n")


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("", {}),
        ("# all as it is\n", {}),
        ("rate: 1", {"rate": 1.0}),
        ("rate: 1e-3", {"rate": 0.001}),  # YAML 1.1 reads a text here
        ("rate: -2.5E+3", {"rate": -2500.0}),
        ("shares: [1, 0, 1e-1]", {"shares": (1.0, 0.0, 0.1)}),
        ("tags: []", {"tags": ()}),
        ("limit: 3\nout: a/b", {"limit": 3, "out": Path("a/b")}),
        ("limit:\nout: null", {}),
        ("reward: {response: sampled}", {"reward": Reward(response="sampled")}),
        ("reward: {}", {}),
    ],
)
def test_what_is_left_out_keeps_its_default(tmp_path: Path, text: str, changes: dict[str, object]):
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(Options, tmp_path / "config.yaml") == replace(Options(), **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps: 3", "config.yaml: unknown option 'stepps'; did you mean 'steps'?"),
        ("zebra: 3", "config.yaml: unknown option 'zebra'; known: limit, name, out, rate, resume, reward, shares,"),
        ("1: 3", "config.yaml: unknown option 1; known:"),
        ("reward: {clicks: 3}", "config.yaml: reward: unknown option 'clicks'; did you mean 'click'?"),
        ("steps: many", "config.yaml: steps: wrong type; got 'many', expected int"),
        ("steps: 1.0", "steps: wrong type; got 1.0, expected int"),
        ("steps: true", "steps: wrong type; got True, expected int"),
        ("steps: 1e3", "steps: wrong type; got '1e3', expected int"),
        ("steps:", "steps: wrong type; expected int"),
        ("rate: fast", "rate: wrong type; got 'fast', expected float"),
        ("rate: '0.1'", "rate: wrong type; got '0.1', expected float"),
        ("rate: true", "rate: wrong type; got True, expected float"),
        ("rate: .nan", "rate: not a finite number; got nan"),
        ("rate: -.inf", "rate: not a finite number; got -inf"),
        ("rate: 1e999", "rate: not a finite number; got inf"),
        ("name: 3", "name: wrong type; got 3, expected str"),
        ("resume: 1", "resume: wrong type; got 1, expected bool"),
        ("shares: [0.5, 0.5]", "shares: wrong type; got [0.5, 0.5], expected a list of 3"),
        ("shares: 1", "shares: wrong type; got 1, expected a list of 3"),
        ("shares: [a, 0.5, 0.5]", "shares: wrong type; got 'a', expected float"),
        ("tags: shoes", "tags: wrong type; got 'shoes', expected a list"),
        ("tags: [1]", "tags: wrong type; got 1, expected str"),
        ("limit: x", "limit: wrong type; got 'x', expected int or NoneType"),
        ("out: 3", "out: wrong type; got 3, expected Path or NoneType"),
        ("reward: 3", "config.yaml: reward: not a mapping of options; got 3, expected 'key: value' lines"),
        ("reward:", "config.yaml: reward: not a mapping of options"),
        ("reward: {response: best}", "reward: response: unknown choice; got 'best', expected 'expected' or 'sampled'"),
        ("reward: {response: [expected]}", "reward: response: unknown choice; got ['expected']"),
        ("steps", "config.yaml: not a mapping of options; got 'steps', expected 'key: value' lines"),
        ("[]", "config.yaml: not a mapping of options; got []"),
        ("false", "config.yaml: not a mapping of options; got False"),
        ("steps: 1\nrate: a: b", "config.yaml line 2: not a YAML file; got 'mapping values are not allowed here'"),
        ("a: [1", "not a YAML file"),
        ("!!python/object/apply:os.getcwd []", 'config.yaml line 1: not a YAML file; got "could not determine'),
        ("\x00", "config.yaml: not a YAML file"),
    ],
)
def test_bad_configs(tmp_path: Path, text: str, message: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(Options, tmp_path / "config.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(InputError, match=r"config\.yaml: no such file"):
        load_config(Options, tmp_path / "config.yaml")
    with pytest.raises(InputError, match="not a YAML file"):
        load_config(Options, tmp_path)
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(InputError, match=r"config\.yaml: not a YAML file"):
        load_config(Options, tmp_path / "config.yaml")


def test_an_option_without_default_must_stand_there():
    assert from_dict(Needy, {"steps": 1}, "here") == Needy(1)
    with pytest.raises(InputError, match=r"here: .*missing 1 required positional argument: 'steps'"):
        from_dict(Needy, {"seed": 1}, "here")
