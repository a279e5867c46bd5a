import subprocess
import sys
from pathlib import Path

import pytest

from hawker.agents.config import TrainConfig
from hawker.shop.config import load_config, save_config
from hawker.shop.errors import InputError
from hawker.shop.reward import RewardSpec


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(steps=7, learning_rate=1e-9, reward=RewardSpec(2.0, 0.5, 0.1, response="sampled"), device="cpu"),
    ],
)
def test_yaml_keeps_everything(config: TrainConfig, tmp_path: Path):
    save_config(config, tmp_path / "config.yaml")
    assert load_config(TrainConfig, tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step: 5", "config.yaml: unknown option 'step'; did you mean 'steps'?"),
        ("steps: 1.5", "config.yaml: steps: wrong type; got 1.5, expected int"),
        ("clip: .nan", "config.yaml: clip: not a finite number; got nan"),
        ("reward: {click: yes}", "config.yaml: reward: click: wrong type; got True, expected float"),
        (
            "reward: {response: drawn}",
            "config.yaml: reward: response: unknown choice; got 'drawn', expected 'expected'",
        ),
    ],
)
def test_bad_yaml_is_named(text: str, message: str, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(TrainConfig, tmp_path / "config.yaml")
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_it_is_read_without_torch():
    code = "import sys, hawker.agents.config; assert not {'torch', 'gymnasium', 'stable_baselines3'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
