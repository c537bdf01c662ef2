"""A configuration as YAML files hold it: one file, and those that it includes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

#: The key whose value is a list of files, relative to the one that holds it, which are read before it.
INCLUDE = "include"


class ConfigError(ValueError):
    """A configuration that cannot be meant; the message names the key, what came and what was expected."""


def read_config_files(path: Path, _above: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """The name and the content of each file, in the order in which later ones overrule earlier ones.

    ``include: [parts/paper.yaml, parts/tea50.yaml]`` reads these files first, in this order, with what they include.

    Raises:
        FileNotFoundError: there is no such file; the message says which one includes it.
        ConfigError: a file is no YAML mapping, ``include`` is no list of paths, or files include each other.
    """
    by = f" (included by {_above[-1]})" if _above else "; configs/motion.yaml is one to start from"
    if not path.is_file():
        raise FileNotFoundError(f"config: no file {path}{by}")
    if path.resolve() in (other.resolve() for other in _above):
        raise ConfigError(f"{path}: {INCLUDE} leads back to it, by way of {', '.join(map(str, _above))}")
    content = _read(path)
    included = content.pop(INCLUDE, [])
    if not isinstance(included, list) or not all(isinstance(name, str) and name for name in included):
        raise ConfigError(f"{path}: {INCLUDE} is {included!r}, expected a list of files, such as [parts/tea50.yaml]")
    files = [file for name in included for file in read_config_files(path.parent / name, (*_above, path))]
    return [*files, (str(path), content)]


def one_line(error: Exception) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())


def _read(path: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, expected a mapping such as 'optim: {{lr: 0.01}}'")
    return {str(key): value for key, value in content.items()}
