"""The command line: ``hawker COMMAND``."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from hawker.app.commands import COMMANDS, CONFIGS, Command
from hawker.app.train_commands import DEFAULTS
from hawker.shop.config import from_dict, load_config, to_dict
from hawker.shop.errors import InputError, did_you_mean

__all__ = ["COMMANDS", "main"]

TRAIN_ONLY = (
    *("torch", "gymnasium", "stable_baselines3", "sklearn", "tea_tasting", "onnx", "onnxscript", "tensorboard"),
    *("transformers", "trl", "peft", "datasets", "accelerate"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 for input that cannot be used, 128 + n for signal n.

    Args:
        argv: Words after ``hawker``; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        name = _name(words)
        if name is None:
            print(overview())
            return 0
        _parse(name, words[len(name.split()) :]).run()
        sys.stdout.flush()
    except InputError as error:
        print(f"hawker: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAIN_ONLY:
            raise
        print(f"hawker: {error.name} is not installed; run pip install 'hawker[train]'", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough, as in `hawker decide ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("hawker: interrupted; what was written before is intact", file=sys.stderr)
        return 130
    return 0


def overview() -> str:
    """Return what ``hawker --help`` prints."""
    rows = [f"  {name:19}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        (
            "usage: hawker COMMAND [--help]",
            "",
            "Train a shop's strategy against shoppers learned from its own logs.",
            "",
            *rows,
        )
    )


def _name(words: list[str]) -> str | None:
    """Return the command that the words begin with; None asks for the overview."""
    if not words or words[0] in ("-h", "--help"):
        return None
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name
    group = [name for name in COMMANDS if name.split()[0] == words[0]]
    said = " ".join(words[: 2 if group and len(words) > 1 else 1])
    remedy = f"commands: {', '.join(group)}" if group else did_you_mean(said, COMMANDS)
    raise InputError("unknown command", where="command", got=said, remedy=remedy)


def _parse(name: str, words: list[str]) -> Command:
    """Build the command from its words, with options from ``--config FILE`` as defaults."""
    command: Any = COMMANDS[name]
    default = tyro.MISSING_NONPROP
    file = _value_of("--config", words)
    if name in CONFIGS and (file is not None or name in DEFAULTS):
        options, config = CONFIGS[name]
        chosen = DEFAULTS[name](words) if name in DEFAULTS else config()
        if file is not None:
            chosen = _with_file(chosen, Path(file))
        required = {
            entry.name: tyro.MISSING
            for entry in dataclasses.fields(command)
            if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        }
        default = command(**required, **{options: chosen})
    parsed: Command = tyro.cli(command, prog=f"hawker {name}", args=words, default=default)
    return parsed


def _with_file(config: Any, file: Path) -> Any:
    """Return a config with the values that a YAML file gives; what it does not name stays, in nested options too."""
    load_config(type(config), file)  # says what is wrong with the file
    given = yaml.safe_load(file.read_text()) or {}
    return from_dict(type(config), _merged(to_dict(config), given), file)


def _merged(values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merged(values[name], value) if isinstance(value, dict) else value for name, value in given.items()}
    return values | both


def _value_of(option: str, words: list[str]) -> str | None:
    """Return what follows an option, given as two words or as OPTION=VALUE."""
    for i, word in enumerate(words):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and i + 1 < len(words):
            return words[i + 1]
    return None


if __name__ == "__main__":
    sys.exit(main())
