import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hawker.shop.config import load_config, save_config
from hawker.shop.errors import InputError
from hawker.simulators.config import FitConfig, PlantedEffects


@pytest.mark.parametrize(
    "config",
    [
        FitConfig(),
        FitConfig(members=1, shares=(0.5, 0.25, 0.25), learning_rate=1e-5, device="cuda:1"),
        PlantedEffects(),
        PlantedEffects(ctr=1e-4, examination=1.0),
    ],
)
def test_yaml_keeps_everything(config: FitConfig | PlantedEffects, tmp_path: Path):
    save_config(config, tmp_path / "config.yaml")
    assert load_config(type(config), tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("member: 5", "config.yaml: unknown option 'member'; did you mean 'members'?"),
        ("shares: [0.5, 0.5]", "config.yaml: shares: wrong type; got [0.5, 0.5], expected a list of 3"),
        ("shares: [a, 0.5, 0.5]", "config.yaml: shares: wrong type; got 'a', expected float"),
        ("seed: true", "config.yaml: seed: wrong type; got True, expected int"),
    ],
)
def test_bad_yaml_is_named(text: str, message: str, tmp_path: Path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(FitConfig, tmp_path / "config.yaml")
    assert str(caught.value) == f"{tmp_path}/{message}"


@pytest.mark.parametrize("config", [FitConfig, PlantedEffects])
def test_every_field_is_told_in_the_docstring(config: type):
    for field in fields(config):
        assert f"\n        {field.name}: " in (config.__doc__ or ""), field.name


def test_it_is_read_without_torch():
    code = "import sys, hawker.simulators.config; assert not {'torch', 'sklearn', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
