"""The wheel: what is in it, what it asks for, and that it runs where nothing else is installed."""

import email
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ["shop", "simulators", "policies", "envs", "agents", "benchmarks", "app"]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tree, since setuptools packs whatever an older build left in build/."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ["pyproject.toml", "README.md", "LICENSE", "NOTICE"]:
        shutil.copy(ROOT / file, tree)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "dist", ".", cwd=tree)
    (built,) = (tree / "dist").glob("*.whl")
    return built


def test_wheel_holds_every_file_of_the_folders(wheel: Path):
    packed = {file for file in zipfile.ZipFile(wheel).namelist() if not file.split("/")[0].endswith(".dist-info")}
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert packed == {f"hawker/{path.relative_to(ROOT)}" for path in paths if "__pycache__" not in path.parts}
    assert [file for file in packed if file.startswith("hawker/shop/data/obd/")]
    assert [file for file in packed if file.startswith("hawker/shop/data/cdnow/")]


def test_wheel_asks_for_torch_only_to_train(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        folder = next(file for file in archive.namelist() if file.endswith("/METADATA")).removesuffix("METADATA")
        metadata = email.message_from_bytes(archive.read(folder + "METADATA"))
        scripts = archive.read(folder + "entry_points.txt").decode()
        licences = {file.removeprefix(folder + "licenses/") for file in archive.namelist() if "/licenses/" in file}
    wanted = metadata.get_all("Requires-Dist") or []
    assert [line for line in wanted if line.startswith("torch")] == ['torch>=2.8; extra == "train"']
    assert [line for line in wanted if line.startswith("onnxruntime") and "extra" not in line]
    assert metadata.get_all("Provides-Extra") == ["train", "dev"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert licences == {"LICENSE", "NOTICE"}
    assert "hawker = hawker.app.cli:main" in scripts


@pytest.mark.slow
def test_wheel_runs_in_a_clean_environment(wheel: Path, tmp_path: Path):
    """Takes the core's dependencies from the package index, hence slow: nothing lent by this environment."""
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    run(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    run(python, "-c", "import importlib.util as u; assert not u.find_spec('torch')", cwd=tmp_path)
    assert "demo" in run(python.parent / "hawker", "--help", cwd=tmp_path)
    run(python, "-c", "import hawker.policies.bundle, hawker.shop.logs", cwd=tmp_path)
