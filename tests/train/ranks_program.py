"""What the processes of test_engine_distributed do: four are started once, of which two go on by themselves."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from art.backbones import register_backbone
from art.backbones.interface import Backbone, Features, as_unit_range
from art.train import loop as training_module
from art.train.batch_norm import synchronize_batch_norm
from art.train.batches import TrainingBatches
from art.train.config import Config, load_config
from art.train.loop import train

CPU = torch.device("cpu")
#: An epoch of nine clips in batches of four has two steps.
FIFTY_STEPS = "optim.epochs=25"
EXACT = (
    "kind=art", "model.backbone=plain", "model.backbone_options={}", "model.dropout=0", "model.weight_nce=0.5",
    "model.temperature=0.1", "optim.lr=0.0003", "optim.bank_lr=0.0003", "optim.clip_grad_norm=20", "eval_every=25",
    "data.cache=true", "log.tensorboard=false", FIFTY_STEPS,
)  # fmt: skip
#: Whole where they are many parameters, else with the rest: both kinds are there in a small model.
SHARDED = ("parallel.strategy=fsdp", "parallel.fsdp_block=1000")


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.wide, self.back = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.gelu(self.wide(self.norm(x))))


@register_backbone("plain")
class Plain(Backbone):
    """Without batch normalisation, which in float32 PyTorch rounds at 1e-4 on a CPU: too much to compare ranks by."""

    input_size, channels = 32, 16

    def __init__(self, *, num_frames: int, pretrained: str | None = None) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, self.channels, 8, 8).to(memory_format=torch.channels_last)
        self.layers = nn.ModuleList(_Layer(self.channels) for _ in range(2))
        self.norm = nn.LayerNorm(self.channels)

    def forward(self, video: Tensor) -> Features:
        frames = as_unit_range(video).flatten(0, 1) - 0.5
        x = self.patches(frames).flatten(2).transpose(1, 2).unflatten(0, video.shape[:2])
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return Features(x, x.mean((1, 2)), (4, 4))


class Program:
    """One of several processes. ``found`` is what it tells the tests."""

    def __init__(self, rank: int, folder: Path, small: list[str]) -> None:
        self.rank, self.folder, self.small = rank, folder, small
        self.found: dict[str, Any] = {}

    def config(self, name: str, *overrides: str) -> Config:
        return load_config(None, [*self.small, f"output={self.folder / name}", *overrides])

    @contextlib.contextmanager
    def group(self, name: str, size: int):
        """A process group of the first ``size`` processes."""
        os.environ.update(LOCAL_RANK=str(self.rank), LOCAL_WORLD_SIZE=str(size))
        dist.init_process_group(
            "gloo",
            init_method=f"file://{self.folder}/{name}.store",
            rank=self.rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=60),
        )
        yield
        dist.destroy_process_group()

    def error_of(self, call) -> tuple[str, str]:
        """The kind and the message of the error."""
        try:
            call()
        except Exception as error:
            return type(error).__name__, str(error)
        return "", ""

    def four(self) -> None:
        """Sharded over four, stopped by a signal that one gets; two and one go on with it."""
        config = self.config("four", *EXACT, *SHARDED)
        with in_step(11, lambda _: self.rank == 3 and signal.raise_signal(signal.SIGTERM)):
            self.found["four"] = self.error_of(lambda: train(config))

    def same_losses(self) -> None:
        with watched() as states:
            train(self.config("ddp", *EXACT))
            self.found["weights"] = {name: value.clone() for name, value in states[-1].model.state_dict().items()}
            train(self.config("fsdp", *EXACT, *SHARDED))
            self.found["sharded"] = {
                name: (tuple(parameter.shape), tuple(parameter.to_local().shape))
                for name, parameter in states[-1].model.named_parameters()
            }
            self.found["bank"] = states[-1].model.semantics.bank.clone()
            self.found["learned"] = states[-1].whole_weights(copied=True).get("semantics.agent")

    def goes_on(self) -> None:
        """What four have begun; and a run with dropout and batch normalisation, stopped and continued in many ways."""
        if self.rank == 0:
            shutil.copytree(self.folder / "four", self.folder / "four-to-one")
        dist.barrier()
        train(self.config("four", *EXACT, "parallel.strategy=ddp"), resume=True)
        kept = [
            "kind=art",
            "precision=bf16",
            "optim.clip_grad_norm=1",
            "checkpoints.keep=2",
            "checkpoints.every_steps=1",
            "optim.optimizer=adamw",
        ]
        train(self.config("unbroken", *kept))
        stopped = self.config("stopped", *kept, "checkpoints.asynchronous=true")
        with in_step(3, lambda _: self.rank == 1 and signal.raise_signal(signal.SIGINT)):
            self.found["stopped"] = self.error_of(lambda: train(stopped))
        torch.rand(3 + self.rank)
        train(stopped, resume="auto")

    def errors(self) -> None:
        def spoil(training) -> None:
            if self.rank == 1:
                prepare = TrainingBatches.prepare

                def spoilt(batches, batch):
                    made = prepare(batches, batch)
                    made.video.fill_(float("nan"))
                    return made

                training.batches.prepare = spoilt.__get__(training.batches)

        with in_step(2, spoil):
            self.found["nan"] = self.error_of(lambda: train(self.config("nan", *EXACT, "model.weight_nce=0")))

        original = TrainingBatches.epoch

        def epoch(batches, *args, **kwargs):
            for number, batch in enumerate(original(batches, *args, **kwargs)):
                if number == 1 and self.rank == 1:
                    raise LookupError("this clip is gone")
                yield batch

        TrainingBatches.epoch = epoch
        try:
            began = time.monotonic()
            self.found["unreadable"] = self.error_of(lambda: train(self.config("unreadable")))
            self.found["seconds"] = time.monotonic() - began
        finally:
            TrainingBatches.epoch = original
        self.found["exists"] = self.error_of(lambda: train(self.config("ddp", *EXACT)))
        self.found["three"] = self.error_of(lambda: train(self.config("three", "optim.batch_size=3")))

    def evaluation(self) -> None:
        """Nine clips in batches of four: of the last, one rank has a clip and the other none."""
        overrides = ["kind=art", "data.test_split=train", "data.test_views=2", "optim.epochs=1", *SHARDED]
        self.found["evaluated"] = train(self.config("evaluated", *overrides)).evaluation

    def batch_norm(self) -> None:
        """Of five and three clips against eight, in float64."""
        torch.manual_seed(0)
        video = torch.randn(8, 3, 4, 5, dtype=torch.float64) * 3 + 7
        weights = torch.randn(8, 3, 4, 5, dtype=torch.float64)
        own = slice(0, 5) if self.rank == 0 else slice(5, 8)
        results = []
        for synced in (False, True):
            layer = nn.Sequential(
                nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(3, momentum=None, affine=False)
            ).double()
            if synced:
                synchronize_batch_norm(layer, CPU)
            shown = (video[own] if synced else video).clone().requires_grad_()
            for _ in range(2):
                layer.zero_grad()
                out = layer(shown)
                (out * (weights[own] if synced else weights)).sum().backward()
            gradients = [p.grad.clone() for p in layer.parameters()]
            if synced:
                for gradient in gradients:
                    dist.all_reduce(gradient)
            layer.eval()
            part = slice(None) if synced else own
            results.append([out[part], shown.grad[part], *gradients, *layer.state_dict().values(), layer(video)])
        self.found["batch_norm"] = results
        alone, synced = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
        synchronize_batch_norm(synced, CPU)
        self.found["bfloat16"] = [alone(video.bfloat16()), synced(video[own].bfloat16())]


@contextlib.contextmanager
def in_step(step: int, action):
    """``action(training)`` is called in the middle of that step."""
    original = training_module._Training._step

    def stepping(training, batch):
        if training.state.position.step + 1 == step:
            action(training)
        return original(training, batch)

    training_module._Training._step = stepping
    try:
        yield
    finally:
        training_module._Training._step = original


@contextlib.contextmanager
def watched():
    """The states of the trainings that are run in the block."""
    original, states = training_module._Training.run_epochs, []

    def run(training, *args):
        states.append(training.state)
        return original(training, *args)

    training_module._Training.run_epochs = run
    try:
        yield states
    finally:
        training_module._Training.run_epochs = original


def run(rank: int, folder: str, small: list[str]) -> None:
    torch.set_num_threads(1)
    program = Program(rank, Path(folder), small)
    with program.group("four", 4):
        program.four()
    if rank < 2:
        with program.group("two", 2):
            program.same_losses()
            program.goes_on()
            program.errors()
            program.evaluation()
            program.batch_norm()
    torch.save(program.found, Path(folder) / f"{rank}.pt")
