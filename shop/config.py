"""Configurations: frozen dataclasses, kept as YAML beside what they made."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hawker.shop.artefacts import write_text
from hawker.shop.errors import InputError, did_you_mean

Config = TypeVar("Config")

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
"""What YAML 1.1 takes for text where everybody means a number: ``1e-3``, ``1.5e3``."""


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain lists, dicts and scalars."""
    return typing.cast("dict[str, Any]", _plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(cls: type[Config], values: Any, where: object) -> Config:
    """Build a config dataclass from a dict, refusing unknown keys and wrong types.

    Args:
        cls: A dataclass whose fields are scalars, tuples of scalars, paths or such dataclasses.
        values: The dict; absent keys keep their defaults.
        where: The file the dict came from, for the message.

    Raises:
        InputError: ``values`` is no dict, has an unknown key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise InputError("not a mapping of options", where=where, got=values, expected="'key: value' lines")
    hints = typing.get_type_hints(cls)
    built = {}
    for key, value in values.items():
        if key not in hints:
            raise InputError(f"unknown option {key!r}", where=where, remedy=did_you_mean(str(key), hints))
        built[key] = _convert(hints[key], value, f"{where}: {key}")
    try:
        return cls(**built)
    except TypeError as error:  # a field without a default was left out
        raise InputError(str(error), where=where) from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError("unknown choice", where=where, got=value, expected=" or ".join(map(repr, arguments)))
        return value
    if origin is tuple:
        any_length = arguments[-1] is Ellipsis
        if not isinstance(value, (list, tuple)) or not (any_length or len(value) == len(arguments)):
            expected = "a list" if any_length else f"a list of {len(arguments)}"
            raise InputError("wrong type", where=where, got=value, expected=expected)
        hints = [arguments[0]] * len(value) if any_length else arguments
        return tuple(_convert(hint, item, where) for hint, item in zip(hints, value, strict=True))
    options = arguments or (hint,)  # `int | None` has arguments, `int` has none
    if value is None and type(None) in options:
        return None
    if float in options and isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, dict):  # `SomeConfig | None`
        for option in options:
            if dataclasses.is_dataclass(option):
                return from_dict(typing.cast("type[Any]", option), value, where)
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError("not a finite number", where=where, got=value)
    for option in options:
        if option is Path and isinstance(value, str):
            return Path(value)
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    expected = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise InputError("wrong type", where=where, got=value, expected=expected)


def save_config(config: Any, path: Path) -> None:
    """Write a config as YAML."""
    write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def load_config(cls: type[Config], path: Path) -> Config:
    """Read a config from YAML.

    Raises:
        InputError: The file is missing, is not YAML, or does not fit ``cls``.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{path} line {mark.line + 1}" if mark else path
        raise InputError("not a YAML file", where=line, got=str(error).splitlines()[0]) from None
    return from_dict(cls, {} if values is None else values, path)
