"""The folder of one run: what lies where, when it may be written, and its history of measurements."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, Literal

from art.data.files import atomic_write
from art.train.checkpoint import TRAINING_STATE, recover
from art.train.config import Config, ConfigError, config_from_dict, save_config, to_dict

#: What may differ between a run and its continuation: none of it changes what is computed at a step, but for rounding
#: (and, of parts of a batch, but for what batch normalisation sees, as with another number of devices).
MAY_CHANGE = (
    "output", "device", "eval_every", "log_every", "report", "data.root", "data.workers", "data.cache", "compile",
    "optim.accumulate",
    "log.tensorboard", "log.wandb", "log.mlflow", "log.mlflow_experiment", "log.gradient_norms",
    "log.histograms_every", "log.profile",
    "parallel.strategy", "parallel.fsdp_block", "parallel.unused_parameters", "parallel.timeout",
    "checkpoints.every_steps", "checkpoints.keep", "checkpoints.asynchronous",
)  # fmt: skip


#: Whether to continue a run; "auto": if there is one.
Resume = bool | Literal["auto"]

_SECONDS_TO_BE_SEEN = 10.0


class RunExists(FileExistsError):
    """The run folder already holds a run, and neither to resume nor to overwrite it was asked for."""


class RunFolder:
    """Paths of a run: ``config.yaml``, ``classes.txt``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/last`` and
    ``best``, ``evaluation.json``, ``predictions.npz``, ``report.html``; where they are asked for, ``observers.json``,
    ``wandb/`` and ``trace/``."""

    _CONTENTS = (
        "config.yaml", "classes.txt", "metrics.jsonl", "tensorboard", "checkpoints", "evaluation.json",
        "predictions.npz", "report.html", "observers.json", "wandb", "trace",
    )  # fmt: skip

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.classes = self.path / "classes.txt"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.observers = self.path / "observers.json"
        self.trace = self.path / "trace"
        self.last = self.path / "checkpoints" / "last"
        self.best = self.path / "checkpoints" / "best"
        self.evaluation = self.path / "evaluation.json"
        self.predictions = self.path / "predictions.npz"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return any((self.path / name).exists() for name in self._CONTENTS)

    def has_checkpoint(self) -> bool:
        """Whether there is a state to continue from."""
        recover(self.last)
        return (self.last / TRAINING_STATE).is_file()

    def check(self, config: Config, *, resume: Resume, overwrite: bool) -> bool:
        """Whether this run may start here. Changes nothing.

        Returns:
            Whether it is resumed; "auto" is yes where a run was begun.

        Raises:
            RunExists: a run is here, and neither ``resume`` nor ``overwrite``.
            FileNotFoundError: ``resume``, but no run is here.
            ConfigError: both at once, or ``resume`` with another configuration; it names the keys.
        """
        if resume and overwrite:
            raise ConfigError("resume and overwrite: got both, expected at most one")
        if resume == "auto":
            resume = self.config.is_file()
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output: {self.path} is a file, expected a folder or a path that is free")
        if resume:
            if not self.config.is_file():
                raise FileNotFoundError(f"{self.path}: no run to resume (no config.yaml there); leave out --resume")
            self._check_same(config)
        elif self.exists() and not overwrite:
            raise RunExists(
                f"{self.path}: already holds a run; continue it with --resume, replace it with --overwrite, "
                "or choose another folder with output=..."
            )
        return bool(resume)

    def check_visible(self) -> None:
        """Whether this rank sees what :meth:`begin` wrote on rank 0; a file system on a network may take a moment.

        Raises:
            ConfigError: it does not.
        """
        deadline = time.monotonic() + _SECONDS_TO_BE_SEEN
        while not self.config.is_file():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"output: rank 0 has written {self.config}, and another rank does not see it; expected a folder on "
                    "a file system that all machines of the run share, because every rank writes into checkpoints"
                )
            time.sleep(0.1)

    def _check_same(self, config: Config) -> None:
        former = to_dict(config_from_dict(read_yaml(self.config), str(self.config)))
        changed = differing_keys(former, to_dict(config))
        if config.optim.schedule == "step":  # whose past does not depend on how long it will be
            changed.pop("optim.epochs", None)
        if changed:
            told = ", ".join(f"{key} (was {was!r}, is {now!r})" for key, (was, now) in list(changed.items())[:5])
            raise ConfigError(
                f"{self.path}: cannot resume with another configuration: {told}. Use the former values, "
                "or start another run with output=..."
            )

    def begin(self, config: Config, class_names: tuple[str, ...], *, resume: bool) -> None:
        """Clears what a former run left (unless ``resume``) and writes the configuration and the classes."""
        if not resume:
            for name in self._CONTENTS:
                path = self.path / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        atomic_write(self.config, lambda path: save_config(config, path))  # first: with it a run is begun
        atomic_write(self.classes, lambda path: path.write_text("".join(f"{name}\n" for name in class_names), "utf-8"))

    def history(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last line that a crash cut short is left out."""
        return read_history(self.metrics)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line that a crash cut short is left out.

    Raises:
        ValueError: for a line in the middle that is no JSON.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    history = []
    for number, line in enumerate(lines, start=1):
        try:
            history.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}: line {number} is no JSON ({error})") from error
    return history


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    import yaml

    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def differing_keys(former: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two configurations differ and that change what a run computes, with both values."""
    one, other = _flat(former), _flat(now)
    keys = sorted({*one, *other} - set(MAY_CHANGE))
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return result
