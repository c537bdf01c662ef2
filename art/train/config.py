"""Loading and saving the configuration of a run: YAML files, dotted command-line overrides, and variants."""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from art.data.files import check_regular_file, is_url
from art.terminal import one_line, short_repr
from art.train.config_schema import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    LogConfig,
    OptimConfig,
    ParallelConfig,
    check_values,
    get_value,
)  # fmt: skip

__all__ = [
    "CheckpointConfig", "Config", "ConfigError", "DataConfig", "LogConfig", "OptimConfig", "ParallelConfig",
    "config_from_dict", "load_config", "load_saved_config", "save_config", "to_dict", "variants", "with_values",
]  # fmt: skip

_MAX_SHOWN = 100  # characters of a key or value in an error message
#: Former names of keys, still accepted in files, overrides and saved runs.
_ALIASES = {"data.max_bad_share": "data.max_failed_fraction"}


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Load a configuration: the defaults, then included files, the YAML file, and the overrides, in this order.

    ``include: [parts/paper.yaml, parts/tea50.yaml]`` in a file reads those files first, relative to the file.

    Args:
        path: a YAML file; None uses the defaults.
        overrides: ``dotted.key=value``; the value is parsed as YAML: ``optim.lr=0.1``, ``model.pretrained=null``.

    Raises:
        FileNotFoundError: a file does not exist.
        ConfigError: unknown key, wrong type, value out of range, a file that is not a valid YAML mapping, or a URL as
            ``data.root`` that is not in the overrides.

    Examples:
        >>> from art.train.config import load_config
        >>> config = load_config(None, ["optim.lr=0.02", "model.linking=optimal"])
        >>> config.optim.lr, config.model.linking
        (0.02, 'optimal')
        >>> load_config(None, ["optim.learning_rate=0.02"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        art.train.config_schema.ConfigError: optim.learning_rate: unknown key ...
    """
    sources = [] if path is None else _read_files(Path(path))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {short_repr(override)}: expected dotted.key=value, such as optim.lr=0.01")
        sources.append(("the command line", _parse_override(override)))
    config = _merge(sources)
    if is_url(config.data.root) and not any(o.partition("=")[0].strip() in ("data", "data.root") for o in overrides):
        raise ConfigError(
            f"data.root: {config.data.root} is a URL in {path}, and files cannot enable remote data; pass "
            f"data.root={config.data.root} on the command line"
        )
    return config


def config_from_dict(values: dict[str, Any], source: str) -> Config:
    """Build a configuration from the output of :func:`to_dict`, with the checks of :func:`load_config`.

    Args:
        values: nested containers.
        source: name of the source, for error messages.

    Examples:
        >>> from art.train.config import Config, config_from_dict, to_dict
        >>> config_from_dict(to_dict(Config(seed=3)), "a saved run") == Config(seed=3)
        True
    """
    return _merge([(source, values)])


def load_saved_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Load the configuration that :func:`save_config` wrote, and overrides as in :func:`load_config`.

    Raises:
        ConfigError: the file is empty, incomplete or not valid; the message names it.
    """
    groups = _read_files(path)[0][1]
    # The groups of all versions, in the order of the file: a truncated file would be read as one with defaults.
    missing = [name for name in ("data", "model", "optim", "log") if not isinstance(groups.get(name), dict)]
    if missing:
        state = "is empty" if not groups else f"has no {missing[0]}"
        raise ConfigError(f"{path}: {state}, so it is damaged; expected the configuration of a run; restore it")
    return load_config(path, overrides)


def variants(config: Config, over: str) -> dict[str, Config]:
    """Return one configuration per value of a key, by a name that is valid in a file name.

    Args:
        config: base configuration.
        over: ``dotted.key=value,value,...``, each value parsed as YAML: ``model.linking=index,optimal``.

    Raises:
        ConfigError: unknown key, invalid value, fewer than two values, or duplicate values.

    Examples:
        >>> from art.train.config import Config, variants
        >>> list(variants(Config(), "model.linking=index,optimal"))
        ['index', 'optimal']
    """
    key, equals, text = over.partition("=")
    if not equals:
        raise ConfigError(f"over {over!r}: expected dotted.key=value,value, such as model.linking=index,optimal")
    key = _ALIASES.get(key, key)
    if key not in _KEYS:
        raise ConfigError(f"{key}: unknown key (got the values {text!r}); {_suggest(key)}")
    if _KEYS[key] == _GROUP:
        raise ConfigError(f"{key}: is a group of keys, expected one of {', '.join(_members(key))}")
    values = functools.reduce(lambda group, name: group[name], key.split("."), _parse_override(f"{key}=[{text}]"))
    if len(values) < 2:
        raise ConfigError(f"{key}: got {len(values)} values to compare ({text!r}), expected at least 2")
    found: dict[str, Config] = {}
    for value in values:
        variant = with_values(config, {key: value}, f"over {over!r}")
        canonical = get_value(variant, key)
        name = canonical if isinstance(canonical, str) else json.dumps(canonical)
        name = re.sub(r"[^\w.+-]+", "_", name).strip("_")
        if name in found:
            raise ConfigError(f"{key}: got the value {name} twice in {text!r}, expected distinct values")
        found[name] = variant
    return found


def with_values(config: Config, values: Mapping[str, Any], source: str) -> Config:
    """Return a copy of a configuration with some values replaced.

    Args:
        config: base configuration.
        values: new values by dotted key.
        source: name of their source, for error messages.

    Raises:
        ConfigError: unknown key or invalid value.

    Examples:
        >>> from art.train.config import Config, with_values
        >>> with_values(Config(), {"optim.epochs": 5}, "an example").optim.epochs
        5
    """
    nested = [
        functools.reduce(lambda inner, name: {name: inner}, reversed(key.split(".")), value)
        for key, value in values.items()
    ]
    return _merge([("the configuration", to_dict(config)), *((source, change) for change in nested)])


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain nested containers.

    Examples:
        >>> from art.train.config import Config, to_dict
        >>> to_dict(Config())["optim"]["schedule"]
        'step'
    """
    return dataclasses.asdict(config)


def save_config(config: Config, path: Path) -> None:
    """Write all values, defaults included, so that the run does not depend on the defaults of later versions.

    Examples:
        >>> from pathlib import Path
        >>> from art.train.config import Config, load_config, save_config
        >>> save_config(Config(seed=3), Path("run.yaml"))
        >>> load_config("run.yaml").seed
        3
    """
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _read_files(path: Path, parents: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, content) of a file and its includes; later entries override earlier ones."""
    if not path.is_file():
        check_regular_file(path)
        hint = f" (included by {parents[-1]})" if parents else "; configs/motion.yaml is an example to start from"
        raise FileNotFoundError(f"config: no file {path}{hint}")
    if path.resolve() in (parent.resolve() for parent in parents):
        raise ConfigError(f"{path}: include is circular: {', '.join(map(str, (*parents, path)))}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, expected a mapping such as 'optim: {{lr: 0.01}}'")
    values = {str(key): value for key, value in content.items()}
    included = values.pop("include", [])
    if not isinstance(included, list) or not all(isinstance(name, str) and name for name in included):
        raise ConfigError(
            f"{path}: include is {short_repr(included)}, expected a list of files, such as [parts/tea50.yaml]"
        )
    return [f for name in included for f in _read_files(path.parent / name, (*parents, path))] + [(str(path), values)]


def _parse_override(override: str) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(
            f"override {short_repr(override)}: the value cannot be read as YAML ({one_line(error)})"
        ) from error
    assert isinstance(content, dict)  # guaranteed by from_dotlist
    return {str(key): value for key, value in content.items()}


def _merge(sources: Sequence[tuple[str, dict[str, Any]]]) -> Config:
    merged = OmegaConf.structured(Config)
    for source, values in sources:
        for key, value in _leaves(values, source):
            try:
                OmegaConf.update(merged, key, value, merge=value != {})  # mappings are merged; {} clears
            except OmegaConfBaseException as error:
                raise ConfigError(f"{key}: got {short_repr(value)}, expected {_KEYS[key]} (from {source})") from error
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {one_line(error)}") from error
    except (ValueError, TypeError) as error:  # ARTOptions validates its own values
        raise ConfigError(f"model: {error}") from error
    assert isinstance(config, Config)
    check_values(config)
    return config


def _leaves(values: dict[str, Any], source: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; raise for unknown keys here, where the value as written is available."""
    for name, value in values.items():
        key = _ALIASES.get(f"{prefix}{name}", f"{prefix}{name}")
        if key not in _KEYS:
            name = " ".join(key.split())[:_MAX_SHOWN]
            raise ConfigError(
                f"{name}: unknown key (got the value {short_repr(value)}); {_suggest(name)} (from {source})"
            )
        if _KEYS[key] == _GROUP and isinstance(value, dict):
            yield from _leaves(value, source, f"{key}.")
        else:
            yield key, value


def _suggest(key: str) -> str:
    def similarity(known: str) -> float:
        last = difflib.SequenceMatcher(None, key.rsplit(".", 1)[-1], known.rsplit(".", 1)[-1]).ratio()
        return last + 0.01 * difflib.SequenceMatcher(None, key, known).ratio()  # the group breaks ties

    nearest = max(_KEYS, key=similarity)
    if similarity(nearest) >= 0.6:
        return f"the nearest known key is {nearest}, which expects {_KEYS[nearest]}"
    return f"expected one of {', '.join(_members(key.rpartition('.')[0]))}"


def _members(group: str) -> list[str]:
    return [name for name in _KEYS if name.rpartition(".")[0] == group]


_GROUP = "a mapping"


def _schema(kind: type, prefix: str = "") -> dict[str, str]:
    """Return a description of the expected type of every dotted key."""
    keys: dict[str, str] = {}
    for name, hint in get_type_hints(kind).items():
        key = f"{prefix}{name}"
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            keys |= {key: _GROUP, **_schema(hint, f"{key}.")}
        else:
            text = hint.__name__ if hint in (bool, int, float, str) else str(hint)
            keys[key] = text.replace("typing.", "").replace("NoneType", "null").replace("None", "null")
    return keys


_KEYS = _schema(Config)
