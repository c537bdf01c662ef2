"""The program of the processes of test_distributed: four are started once, and two of them continue alone."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from art.backbones import register_backbone
from art.backbones.base import Backbone, Features, to_float01
from art.train import loop
from art.train.batches import TrainingBatches
from art.train.config import Config, load_config
from art.train.loop import train
from art.train.parallel import convert_sync_batch_norm

CPU = torch.device("cpu")
#: An epoch of nine clips in batches of four has two steps.
FIFTY_STEPS = "optim.epochs=25"
EXACT = (
    "kind=art", "model.backbone=plain", "model.backbone_options={}", "model.dropout=0", "model.weight_nce=0.5",
    "model.temperature=0.1", "optim.lr=0.0003", "optim.bank_lr=0.0003", "optim.clip_grad_norm=20", "eval_every=25",
    "data.cache=true", "log.tensorboard=false", FIFTY_STEPS,
)  # fmt: skip
#: A threshold at which a small model has layers that are FSDP units and layers that are not.
SHARDED = ("parallel.strategy=fsdp", "parallel.fsdp_block=1000")


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


@register_backbone("plain")
class Plain(Backbone):
    """No batch norm, whose rounding error of 1e-4 in float32 on a CPU is too large to compare ranks."""

    input_size, channels = 32, 16

    def __init__(self, *, num_frames: int, pretrained: str | None = None) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, self.channels, 8, 8).to(memory_format=torch.channels_last)
        self.layers = nn.ModuleList(_Layer(self.channels) for _ in range(2))
        self.norm = nn.LayerNorm(self.channels)

    def forward(self, video: Tensor) -> Features:
        frames = to_float01(video).flatten(0, 1) - 0.5
        x = self.patches(frames).flatten(2).transpose(1, 2).unflatten(0, video.shape[:2])
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return Features(x, x.mean((1, 2)), (4, 4))


class Program:
    """One of the processes. ``results`` is saved for the tests."""

    def __init__(self, rank: int, directory: Path, small: list[str]) -> None:
        self.rank, self.directory, self.small = rank, directory, small
        self.results: dict[str, Any] = {}

    def config(self, name: str, *overrides: str) -> Config:
        return load_config(None, [*self.small, f"output={self.directory / name}", *overrides])

    @contextlib.contextmanager
    def group(self, name: str, size: int):
        """A process group of the first ``size`` processes."""
        os.environ.update(LOCAL_RANK=str(self.rank), LOCAL_WORLD_SIZE=str(size))
        dist.init_process_group(
            "gloo",
            init_method=f"file://{self.directory}/{name}.store",
            rank=self.rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=60),
        )
        yield
        dist.destroy_process_group()

    def error_of(self, call) -> tuple[str, str]:
        """Returns the type and the message of the error."""
        try:
            call()
        except Exception as error:
            return type(error).__name__, str(error)
        return "", ""

    def stop_four_ranks(self) -> None:
        """Four sharded ranks, stopped by a signal to one of them; two ranks and one process resume the run."""
        config = self.config("four", *EXACT, *SHARDED)
        with in_step(11, lambda _: self.rank == 3 and signal.raise_signal(signal.SIGTERM)):
            self.results["four"] = self.error_of(lambda: train(config))

    def train_two_ranks(self) -> None:
        with record_states() as states:
            train(self.config("ddp", *EXACT))
            self.results["weights"] = {name: value.clone() for name, value in states[-1].model.state_dict().items()}
            train(self.config("fsdp", *EXACT, *SHARDED))
            self.results["sharded"] = {
                name: (tuple(parameter.shape), tuple(parameter.to_local().shape))
                for name, parameter in states[-1].model.named_parameters()
            }
            self.results["bank"] = states[-1].model.semantics.bank.clone()
            self.results["agent"] = states[-1].full_weights(copy=True).get("semantics.agent")

    def resume(self) -> None:
        """Resumes the run of four ranks, and a run with dropout and batch norm that is stopped in between."""
        if self.rank == 0:
            shutil.copytree(self.directory / "four", self.directory / "four-to-one")
        dist.barrier()
        train(self.config("four", *EXACT, "parallel.strategy=ddp"), resume=True)
        overrides = [
            "kind=art", "precision=bf16", "optim.clip_grad_norm=1", "checkpoints.keep=2", "checkpoints.every_steps=1",
            "optim.optimizer=adamw",
        ]  # fmt: skip
        train(self.config("unbroken", *overrides))
        stopped = self.config("stopped", *overrides, "checkpoints.asynchronous=true")
        with in_step(3, lambda _: self.rank == 1 and signal.raise_signal(signal.SIGINT)):
            self.results["stopped"] = self.error_of(lambda: train(stopped))
        torch.rand(3 + self.rank)
        train(stopped, resume="auto")

    def errors(self) -> None:
        def poison(trainer) -> None:
            if self.rank == 1:
                prepare = trainer.batches.prepare

                def prepare_nan(batch):
                    prepared = prepare(batch)
                    prepared.video.fill_(float("nan"))
                    return prepared

                trainer.batches.prepare = prepare_nan

        with in_step(2, poison):
            self.results["nan"] = self.error_of(lambda: train(self.config("nan", *EXACT, "model.weight_nce=0")))

        original = TrainingBatches.epoch

        def epoch(batches, *args, **kwargs):
            for number, batch in enumerate(original(batches, *args, **kwargs)):
                if number == 1 and self.rank == 1:
                    raise LookupError("this clip is missing")
                yield batch

        TrainingBatches.epoch = epoch
        try:
            self.results["unreadable"] = self.error_of(lambda: train(self.config("unreadable")))
        finally:
            TrainingBatches.epoch = original
        self.results["exists"] = self.error_of(lambda: train(self.config("ddp", *EXACT)))
        self.results["three"] = self.error_of(lambda: train(self.config("three", "optim.batch_size=3")))

    def evaluation(self) -> None:
        """Nine clips in batches of four: in the last batch, only one rank has a clip."""
        overrides = ["kind=art", "data.test_split=train", "data.test_views=2", "optim.epochs=1", *SHARDED]
        self.results["evaluated"] = train(self.config("evaluated", *overrides)).evaluation

    def batch_norm(self) -> None:
        """Compares five and three clips on two ranks with eight clips in one process, in float64."""
        torch.manual_seed(0)
        video = torch.randn(8, 3, 4, 5, dtype=torch.float64) * 3 + 7
        weights = torch.randn(8, 3, 4, 5, dtype=torch.float64)
        own = slice(0, 5) if self.rank == 0 else slice(5, 8)
        outputs = []
        for synced in (False, True):
            layer = nn.Sequential(
                nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3, momentum=None, affine=False)
            ).double()
            if synced:
                convert_sync_batch_norm(layer, CPU)
            x = (video[own] if synced else video).clone().requires_grad_()
            for _ in range(2):
                layer.zero_grad()
                out = layer(x)
                (out * (weights[own] if synced else weights)).sum().backward()
            gradients = [p.grad.clone() for p in layer.parameters()]
            if synced:
                for gradient in gradients:
                    dist.all_reduce(gradient)
            layer.eval()
            part = slice(None) if synced else own
            outputs.append([out[part], x.grad[part], *gradients, *layer.state_dict().values(), layer(video)])
        self.results["batch_norm"] = outputs
        single, synced = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
        convert_sync_batch_norm(synced, CPU)
        self.results["bfloat16"] = [single(video.bfloat16()), synced(video[own].bfloat16())]


@contextlib.contextmanager
def in_step(step: int, action):
    """Calls ``action(trainer)`` in that training step."""
    original = loop._Trainer._step

    def patched(trainer, batch):
        if trainer.state.position.step + 1 == step:
            action(trainer)
        return original(trainer, batch)

    loop._Trainer._step = patched
    try:
        yield
    finally:
        loop._Trainer._step = original


@contextlib.contextmanager
def record_states():
    """Yields a list of the states of the runs that are trained in the block."""
    original, states = loop._Trainer.run_epochs, []

    def run_epochs(trainer, *args):
        states.append(trainer.state)
        return original(trainer, *args)

    loop._Trainer.run_epochs = run_epochs
    try:
        yield states
    finally:
        loop._Trainer.run_epochs = original


def run(rank: int, directory: str, small: list[str]) -> None:
    torch.set_num_threads(1)
    program = Program(rank, Path(directory), small)
    with program.group("four", 4):
        program.stop_four_ranks()
    if rank < 2:
        with program.group("two", 2):
            program.train_two_ranks()
            program.resume()
            program.errors()
            program.evaluation()
            program.batch_norm()
    torch.save(program.results, Path(directory) / f"{rank}.pt")
