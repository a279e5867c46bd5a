"""``hawker train`` killed with SIGKILL and resumed, again and again, ends with the weights of a run left alone."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hawker.shop.artefacts import read_json, sha256

ROLLOUT = 1_024
ROLLOUTS = 80
TRAIN = f"steps: {ROLLOUTS * ROLLOUT}\nshoppers: 128\npages: 8\nbatch: 256\ncheckpoint_every: 1\ndevice: cpu\n"
WHOLE_PAGES = "critic_first: 2048\nhidden: 8\nhorizon: 2\nad_gap: 2\n"

SCRATCH = ".checkpoint.writing-*"

KILLS = ("starting",) * 3 + ("learning",) * 4 + ("writing",) * 3
FEWER = ("starting", "learning", "learning", "writing")


def training(home: Path, run: str) -> subprocess.Popen[bytes]:
    """Start ``hawker train --resume`` on a run of ``home``."""
    words = ["-m", "hawker.app.cli", "train", home / run, "--config", home / "train.yaml", "--resume"]
    return subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL)


def written(run: Path) -> int | None:
    """Return when the checkpoint was written, in nanoseconds; None where there is none, as between two renames."""
    with contextlib.suppress(FileNotFoundError):
        return (run / "checkpoint/state.json").stat().st_mtime_ns
    return None


def wait_for_checkpoints(process: subprocess.Popen[bytes], run: Path, count: int) -> None:
    """Return when a process has written so many checkpoints."""
    last = written(run)
    while count:
        assert process.poll() is None, "it ended before it was killed"
        now = written(run)
        if now is not None and now != last:
            last, count = now, count - 1
        time.sleep(0.001)


def wait_for_writing(process: subprocess.Popen[bytes], run: Path) -> None:
    """Return while a process is writing a checkpoint."""
    left = set(run.glob(SCRATCH))  # by one that was killed
    while not set(run.glob(SCRATCH)) - left:
        assert process.poll() is None, "it ended before it was killed"


def weights(run: Path) -> list[str]:
    """Return the digests of what was learned and of the whole state of training."""
    files = ("policy/actor.safetensors", "policy/policy.json", "checkpoint/state.safetensors", "checkpoint/state.json")
    return [sha256(run / name) for name in files]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "config", "kills"),
    [("finished", TRAIN, KILLS), ("remembering", TRAIN + WHOLE_PAGES, FEWER)],
    ids=["slates", "whole pages"],
)
def test_killed_and_resumed_is_as_unbroken(
    made: str, config: str, kills: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path
):
    for name in ("unbroken", "killed"):
        shutil.copytree(request.getfixturevalue(made) / "run/shoppers", tmp_path / name / "shoppers")
    (tmp_path / "train.yaml").write_text(config)
    started = time.monotonic()
    with training(tmp_path, "unbroken") as process:
        wait_for_checkpoints(process, tmp_path / "unbroken", 1)
        ready = time.monotonic() - started
        assert process.wait() == 0
    rollout = (time.monotonic() - started - ready) / ROLLOUTS
    generator, run = np.random.default_rng(0), tmp_path / "killed"
    reached = []
    for kill in generator.permutation(kills):
        with training(tmp_path, "killed") as process:
            if kill == "starting":
                time.sleep(ready * generator.random())
            else:
                wait_for_checkpoints(process, run, generator.integers(1, 4))
                time.sleep(rollout * generator.random())
            if kill == "writing":
                wait_for_writing(process, run)
                time.sleep(0.002 * generator.random())
            process.kill()
            assert process.wait() == -signal.SIGKILL
        state = run / "checkpoint/state.json"
        reached.append(read_json(state)["num_timesteps"] // ROLLOUT if state.exists() else 0)
    with training(tmp_path, "killed") as process:
        assert process.wait() == 0
    assert len(kills) - 3 <= max(reached) < ROLLOUTS
    assert weights(run) == weights(tmp_path / "unbroken")
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint", "policy", "shoppers", "tensorboard"]
