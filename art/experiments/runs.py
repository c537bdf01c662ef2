"""Several trainings, on several devices at once: finished ones are left alone, one that stopped is continued."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
from tqdm import tqdm

from art.data.loading.dataset import DataError
from art.data.parallel import cores, end_with_parent
from art.train.config import Config, ConfigError, config_from_dict, to_dict
from art.train.interruption import Interrupted, Interruption
from art.train.loop import check_trainable, train
from art.train.run_dir import RunFolder, differing_keys

#: In a run folder: what a training in a process of its own said.
LOG = "training.log"


class RunsFailed(RuntimeError):
    """Some of several trainings failed; the message names each of them. The others are done."""


def finished(config: Config) -> bool:
    """Whether the run folder holds the evaluation of a run with this configuration."""
    run = RunFolder(config.output)
    if not run.evaluation.is_file():
        return False
    former = config_from_dict(json.loads(run.evaluation.read_text(encoding="utf-8"))["config"], str(run.evaluation))
    return not differing_keys(to_dict(former), to_dict(config))


def check_trainings(members: Mapping[str, Sequence[Config]]) -> None:
    """Stops where a training would stop before its first step. Writes nothing.

    Args:
        members: runs by what they have in common: those of one name differ in seed and output only.

    Raises:
        ConfigError: it names the runs.
    """
    for title, configs in members.items():
        left = [config for config in configs if not finished(config)]
        try:
            for config in left:
                run = RunFolder(config.output)
                run.check(config, resume=run.exists(), overwrite=False)
            if left:
                check_trainable(left[0])
        except (ValueError, OSError, ImportError, DataError) as error:
            raise ConfigError(f"{title}: {error}") from error


def train_all(configs: Mapping[str, Config], devices: Sequence[str] = ()) -> None:
    """Trains every run that is not finished. One that fails does not keep the others from being trained.

    Args:
        configs: runs by name; each has a folder of its own.
        devices: of processes that train at once, each one run at a time, so that a device may be named several times;
            what a training says is then in ``training.log`` of its folder. Up to one: all is trained in this process,
            on the device of the configurations or on the one that is named.

    Raises:
        RunsFailed: several trainings failed, or one in another process.
        Exception: of the only training that failed in this process.
        Interrupted: on SIGINT or SIGTERM; every training under way has saved its state, and the same call goes on.
    """
    left = {name: config for name, config in configs.items() if not finished(config)}
    if len(devices) > 1 and left:
        failures = _beside_each_other(left, devices)
    else:
        failures = _one_by_one({name: replace(c, device=(*devices, c.device)[0]) for name, c in left.items()})
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        told = "; ".join(f"{name}: {error}" for name, error in failures.items())
        raise RunsFailed(f"{len(failures)} of {len(left)} trainings failed: {told}")


def _one_by_one(configs: Mapping[str, Config]) -> dict[str, Exception]:
    failures: dict[str, Exception] = {}
    for number, (name, config) in enumerate(configs.items(), start=1):
        tqdm.write(f"{name} ({number} of {len(configs)}): {config.output}")
        try:
            train(config, resume=RunFolder(config.output).exists())
        except Interrupted:
            raise
        except Exception as error:
            tqdm.write(f"{name} failed: {error}")
            failures[name] = error
    return failures


def _beside_each_other(configs: Mapping[str, Config], devices: Sequence[str]) -> dict[str, Exception]:
    """Each run in a process of its own, so that its memory can be measured and is given back."""
    pending, free = list(configs.items()), list(devices)[: len(configs)]
    threads = max(1, cores() // len(free))
    under_way: dict[str, tuple[SpawnProcess, Config]] = {}
    failures: dict[str, Exception] = {}
    with (
        Interruption() as interruption,
        contextlib.ExitStack() as ending,
        tqdm(total=len(configs), desc="trainings", unit="run", disable=None) as bar,
    ):
        ending.callback(_stop, under_way)
        while pending or under_way:
            while pending and free:
                name, config = pending.pop(0)
                under_way[name] = _started(replace(config, device=free.pop(0)), threads)
            wait([process.sentinel for process, _ in under_way.values()], timeout=0.5)
            if interruption.signal_number is not None:
                raise Interrupted(
                    interruption.signal_number,
                    f"stopped by signal {interruption.signal_number} with {len(pending) + len(under_way)} of "
                    f"{len(configs)} trainings left; the same command goes on",
                )
            for name in [name for name, (process, _) in under_way.items() if process.exitcode is not None]:
                process, config = under_way.pop(name)
                free.append(config.device)
                bar.update()
                if process.exitcode != 0:
                    failures[name] = _failure(process, config)
                    tqdm.write(f"{name} failed: {failures[name]}")
    return failures


def _started(config: Config, threads: int) -> tuple[SpawnProcess, Config]:
    process = multiprocessing.get_context("spawn").Process(target=_train_here, args=(config, threads))
    process.start()
    return process, config


def _train_here(config: Config, threads: int) -> None:
    """What a process of its own does; Ctrl-C in the terminal is for the one that started it, which ends this one."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    end_with_parent()
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    if torch.get_num_threads() > threads:
        torch.set_num_threads(threads)
    train(config, resume=RunFolder(config.output).exists())


def _stop(under_way: Mapping[str, tuple[SpawnProcess, Config]]) -> None:
    """SIGTERM, on which a training saves its state."""
    for process, _ in under_way.values():
        process.terminate()
    for process, _ in under_way.values():
        process.join()


def _failure(process: SpawnProcess, config: Config) -> RunsFailed:
    log = Path(config.output) / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it left no message")
    code = process.exitcode
    ended = f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    return RunsFailed(f"{config.output}: {last} ({ended}; {log} has the rest)")
