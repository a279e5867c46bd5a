"""The rules of the house: who may import whom, what a file may hold, what is listed where."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FLOORS = {"app": 5, "benchmarks": 4, "agents": 3, "envs": 2, "simulators": 1, "policies": 1, "shop": 0}
SOURCES = sorted(path for folder in FLOORS for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

PICKLERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "__import__"),
    *("torch.save", "PPO.load", "pd.read_pickle"),  # all three pickle
    *("random.seed", "np.random.seed", "numpy.random.seed", "torch.manual_seed", "set_random_seed"),  # global state
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def violations_of_floors(source: str, folder: str) -> Iterator[str]:
    """Yield every import that a module in ``folder`` may not have."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno}: relative import"
            continue
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "hawker":
            modules = [f"hawker.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [str(node.module)]
        else:
            continue
        for module in modules:
            top, _, rest = module.partition(".")
            target = rest.partition(".")[0]
            if top in FLOORS:
                yield f"line {node.lineno}: {module} is imported as hawker.{module}"
            elif top == "hawker" and target != folder and FLOORS[target] >= FLOORS[folder]:
                yield f"line {node.lineno}: {folder} imports {module}"


def hazards(source: str) -> Iterator[str]:
    """Yield what runs foreign code or seeds global state."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            for imported in [module] if module else [alias.name for alias in node.names]:
                if imported.partition(".")[0] in PICKLERS:
                    yield f"line {node.lineno}: import of {imported}"
        if isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            safe = "weights_only=True" in map(ast.unparse, node.keywords)
            if function in FORBIDDEN_CALLS or (function == "torch.load" and not safe):
                yield f"line {node.lineno}: {function}()"
            if "allow_pickle=True" in map(ast.unparse, node.keywords):
                yield f"line {node.lineno}: allow_pickle"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_run_downhill(path: Path):
    assert not list(violations_of_floors(path.read_text(), path.relative_to(ROOT).parts[0]))


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("shop", "from hawker.app import cli"),
        ("shop", "def late():\n    import hawker.envs.storefront as storefront"),
        ("envs", "from hawker import agents"),
        ("envs", "from hawker.benchmarks.ope import estimate"),
        ("simulators", "from hawker.policies.protocol import Strategy"),
        ("policies", "import hawker.simulators.learned"),
        ("agents", "from . import ppo"),
        ("agents", "from shop.logs import read_logs"),
    ],
)
def test_import_uphill_is_seen(folder: str, source: str):
    assert len(list(violations_of_floors(source, folder))) == 1


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("app", "from hawker.benchmarks.ope import estimate"),
        ("envs", "from hawker import policies, simulators"),
        ("shop", "import numpy\nfrom hawker.shop.errors import InputError"),
    ],
)
def test_import_downhill_is_let_through(folder: str, source: str):
    assert not list(violations_of_floors(source, folder))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_source_runs_no_foreign_code_and_seeds_nothing_global(path: Path):
    assert not list(hazards(path.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import pickle",
        "from joblib import dump",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "PPO.load(path)",
        "torch.manual_seed(0)",
        "np.random.seed(0)",
    ],
)
def test_hazard_is_seen(source: str):
    assert len(list(hazards(source))) == 1


@pytest.mark.parametrize(
    "source", ["model.eval()", "torch.load(path, weights_only=True)", "generator.manual_seed(0)", "np.load(path)"]
)
def test_harmless_is_let_through(source: str):
    assert not list(hazards(source))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_module_says_what_it_is(path: Path):
    assert ast.get_docstring(ast.parse(path.read_text())), "a module begins with a docstring"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name)
def test_file_is_short_and_named_after_what_it_holds(path: Path):
    assert len(path.read_text().splitlines()) <= 500
    assert path.stem not in {"utils", "helpers", "common", "manager", "misc"}


@pytest.mark.parametrize("folder", FLOORS)
def test_every_module_is_tested_where_its_name_says(folder: str):
    modules = {path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("__")}
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / folder).glob("test_*.py")}
    tested = {module: [t for t in tests if t == module or t.startswith(f"{module}_")] for module in modules}
    assert modules, f"{folder}/ holds no module"
    assert not [module for module, files in tested.items() if not files], "modules without a test file"
    assert not tests - {t for files in tested.values() for t in files}, "test files named after no module"


def test_tests_mirror_the_folders():
    folders = {path.parent.relative_to(ROOT / "tests") for path in TESTS}
    assert folders == {Path(), *map(Path, FLOORS)}


def test_packages_match_the_tree():
    def holds_code(folder: Path) -> bool:
        return folder.name not in {"tests", "build", "dist", "runs"} and not folder.name.startswith(".")

    top = [path for path in ROOT.iterdir() if path.is_dir() and holds_code(path)]
    folders = {path.parent.relative_to(ROOT) for folder in top for path in folder.rglob("*.py")}
    tree = {".".join(("hawker", *folder.parts)) for folder in folders}
    assert tree == set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert tree == set(PYPROJECT["tool"]["mypy"]["packages"])
    assert not [package for package in FLOORS if not (ROOT / package / "py.typed").is_file()]


def test_pins_hold_what_is_required():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}
    project = PYPROJECT["project"]
    for text in itertools.chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text
    assert "torch" not in {Requirement(text).name for text in project["dependencies"]}


@pytest.mark.parametrize(
    "statement",
    [
        "import hawker.policies.bundle, hawker.shop.logs",
        "import " + ", ".join(f"hawker.shop.{path.stem}" for path in SOURCES if path.parent.name == "shop"),
        "import contextlib, hawker.app.cli\nwith contextlib.suppress(SystemExit): hawker.app.cli.main(['--help'])",
    ],
    ids=["serving", "shop", "command line"],
)
def test_torch_stays_out_of(statement: str):
    heavy = "{'torch', 'transformers', 'trl', 'stable_baselines3', 'gymnasium', 'sklearn'}"
    code = f"{statement}\nimport sys; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_address_of_a_registry_is_written_down():
    texts = [ROOT / file for file in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run")]
    assert not [path.name for path in texts if re.search(r"https?://", path.read_text())]
