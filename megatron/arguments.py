"""From a command line to a configuration: flags are derived from nested frozen dataclasses by tyro.

What tyro lacks is added here: `--config FILE`, `--preset NAME`, and advice for flags of Megatron-LM that have
another name here or are not supported. Nothing is ignored. Order of precedence: flags, file, preset, defaults.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from megatron.errors import UserError

Config = TypeVar("Config")


def parse(
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    presets: Mapping[str, Any] | None = None,
    advice: Mapping[str, str] | None = None,
) -> Config:
    """The configuration that a command line describes.

    presets: shapes for `--preset`, values of the section `model`. advice: flags (without dashes) that are an error
    here, each with its successor or the reason. Wrong flags and values end the process with exit code 2 (tyro).
    Raises `UserError` for an unknown preset, a bad file, or a flag with advice.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for argument in arguments:
        name = argument.split("=")[0].lstrip("-").replace("_", "-").lower()
        if argument.startswith("--") and name in (advice or {}):
            raise UserError(f"--{name}: {(advice or {})[name]}")
    arguments, file = _take(arguments, "--config")
    arguments, preset = _take(arguments, "--preset") if presets is not None else (arguments, None)
    if file is not None:
        from_file, preset_in_file = _take(_flags_of_file(Path(file)), "--preset")
        arguments, preset = from_file + arguments, preset or preset_in_file
    extra = "--config FILE: options from a YAML, TOML or JSON file (flags override it)."
    default: dict[str, Any] = {}
    if presets is not None:
        extra += f" --preset NAME: a published shape (flags override it): {', '.join(presets)}."
        if preset is not None:
            if preset not in presets:
                raise UserError(f"--preset {preset} is unknown; there are: {', '.join(presets)}")
            default = {"default": dataclasses.replace(config_class(), model=presets[preset])}  # type: ignore[type-var]
    return tyro.cli(
        config_class,
        prog=prog,
        description=f"{description}\n\n{extra}",
        args=arguments,
        **default,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _take(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """Remove `flag VALUE` or `flag=VALUE` from the arguments and return the value."""
    rest: list[str] = []
    value: str | None = None
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument == flag:
            if position + 1 == len(arguments):
                raise UserError(f"{flag} needs a value")
            value, position = arguments[position + 1], position + 2
        elif argument.startswith(flag + "="):
            value, position = argument[len(flag) + 1 :], position + 1
        else:
            rest.append(argument)
            position += 1
    return rest, value


def _flags_of_file(path: Path) -> list[str]:
    """The options of a configuration file as the flags that say the same; sections are only for the reader."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".toml":
            if sys.version_info >= (3, 11):
                import tomllib
            else:
                import tomli as tomllib
            values = tomllib.loads(text)
        else:
            import yaml

            values = yaml.safe_load(text)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"--config {path}: {error}") from None
    except Exception as error:  # yaml has its own root of errors
        raise UserError(f"--config {path} is neither YAML, TOML nor JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold NAME: VALUE lines, optionally in sections")
    return _flags(values)


def flags_of(config: Any) -> list[str]:
    """The flags that make `parse` give this configuration, of sections with defaults."""
    default = type(config)()
    changed: dict[str, Any] = {}
    for section in dataclasses.fields(config):
        part, plain = getattr(config, section.name), getattr(default, section.name)
        values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        changed |= {name: value for name, value in values.items() if value != getattr(plain, name)}
    return _flags(changed)


def _flags(values: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in values.items():
        flag = f"--{str(name).replace('_', '-')}"
        if isinstance(value, Mapping):
            flags += _flags(value)
        elif value is True:
            flags.append(flag)
        elif isinstance(value, (list, tuple)):
            flags += [flag, *map(str, value)] if value else []
        elif value is not None and value is not False:
            flags += [flag, str(value)]
    return flags
