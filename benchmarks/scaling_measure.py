"""Measuring a training step of the recipes on this device, and two ranks of it on this machine."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from art.model.pretrained import VideoClassifier
from art.tools.profile import count_stages, model_maker
from art.train.config import Config, load_config
from art.train.distributed import Ranks
from art.train.optim import build_optimizers
from art.train.parallel import Objective, adding_up, parallelized, sharded_layers
from art.train.runtime import autocast
from benchmarks.machine import ROOT
from benchmarks.scaling_machines import Assumptions
from benchmarks.scaling_model import FLOAT, Work, hidden_behind
from benchmarks.timing import Effort, time_calls

#: The recipes whose steps are counted, measured and projected, by a short name; each is a file of `configs`.
RECIPES = {"b16": "finegym99_uniformerv2_b16", "l14": "finegym99_uniformerv2_l14"}
#: FineGym99's.
CLASSES = 99


def recipe(name: str, overrides: tuple[str, ...] = ()) -> Config:
    """The configuration."""
    return load_config(ROOT / "configs" / f"{RECIPES[name]}.yaml", overrides)


def count(config: Config) -> Work:
    """What a step of a recipe has to do, counted from its modules in its precision."""
    make = model_maker(config, CLASSES)
    stages = count_stages(make, precision=partial(autocast, torch.device("cpu"), config.precision))
    with torch.device("meta"):
        layers = len(sharded_layers(Objective(make()), config.parallel.fsdp_block)) + 1
    return Work(
        forward_macs=sum(stage.forward_macs for stage in stages),
        backward_macs=sum(stage.backward_macs for stage in stages),
        parameters=sum(stage.parameters for stage in stages),
        layers=layers,
    )


def measure(name: str, config: Config, work: Work, device: torch.device, clips: int, effort: Effort) -> dict[str, Any]:
    """Time of both passes with the loss, and of the optimizers' step with what follows it.

    Returns:
        Recipe, clips, precision, "passes" and "update" as of `Timing`, and "tflops", 10¹² operations a second of the
        passes.
    """
    torch.manual_seed(0)
    model = model_maker(config, CLASSES)().to(device).train()
    optimizers = build_optimizers(model.parameter_groups(), config.optim)
    video, labels = batch(model, clips, device)

    def passes() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(device, config.precision):
            loss = model.loss(model(video), labels).total
        loss.backward()

    def update() -> None:
        for optimizer in optimizers:
            optimizer.step()
        model.after_step()

    passes()
    timings = time_calls({"passes": passes, "update": update}, device, effort)
    operations = 2 * clips * (work.forward_macs + work.backward_macs)
    return {
        "recipe": name,
        "clips": clips,
        "precision": config.precision,
        **{part: vars(timing) for part, timing in timings.items()},
        "tflops": operations / (1e9 * timings["passes"].median_ms),
    }


def batch(model: VideoClassifier, clips: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise in the place of clips, and labels."""
    size = model.input_size
    return (
        torch.rand(clips, model.options.num_frames, 3, size, size, device=device),
        torch.arange(clips, device=device) % CLASSES,
    )


def compare_with_ranks(name: str, config: Config, work: Work, *, ranks: int, steps: int) -> dict[str, Any]:
    """Steps of several ranks on this machine's CPU, one thread and one clip each, beside what the formula says of them.

    Returns:
        Seconds: "computing" of the ranks together without sending, "all_reduce" of as many bytes alone, "measured" with
        both, "predicted" from the first two.
    """
    with tempfile.TemporaryDirectory() as scratch:
        context = multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_rank, args=(rank, ranks, config, steps, Path(scratch))) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"ranks ended with {[process.exitcode for process in processes]}")
        seconds: dict[str, float] = torch.load(Path(scratch) / "seconds.pt", weights_only=True)
    backward = seconds["computing"] * work.backward_macs / (work.forward_macs + work.backward_macs)
    buckets = -(-FLOAT * work.parameters // Assumptions().bucket_bytes)
    predicted = seconds["computing"] + hidden_behind(backward, seconds["all_reduce"], buckets)
    return {"recipe": name, "frames": config.model.num_frames, "ranks": ranks, **seconds, "predicted": predicted}


def _rank(rank: int, ranks: int, config: Config, steps: int, scratch: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{scratch}/store", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    device = torch.device("cpu")
    model = model_maker(config, CLASSES)()
    objective = parallelized(model, Ranks(device, rank, ranks, rank, ranks, dist.group.WORLD), config.parallel).train()
    video, labels = batch(model, 1, device)
    gradients = torch.zeros(sum(parameter.numel() for parameter in model.parameters()))

    def step() -> None:
        objective(video, labels)[1]["total"].backward()

    def alone() -> None:
        with adding_up(objective):
            step()

    calls: dict[str, Callable[[], object]] = {
        "computing": alone, "measured": step, "all_reduce": lambda: dist.all_reduce(gradients),
    }  # fmt: skip
    seconds = {name: _median_seconds(call, steps, objective) for name, call in calls.items()}
    if rank == 0:
        torch.save(seconds, scratch / "seconds.pt")
    dist.destroy_process_group()


def _median_seconds(call: Callable[[], object], steps: int, objective: nn.Module) -> float:
    found = []
    for step in range(steps + 1):  # the first does not count
        objective.zero_grad(set_to_none=False)
        dist.barrier()
        start = time.perf_counter()
        call()
        dist.barrier()
        found += [time.perf_counter() - start] if step else []
    return statistics.median(found)
