"""The whole loader against a model step: the first batch, its rate, and the share of the time that the model waits."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from art.data.datasets.clips import Clip, ClipSet
from art.data.loading.dataset import ClipDataset, build_loader
from art.model.options import ARTOptions
from art.model.pretrained import build_model
from art.train.randomness import untouched_random_state

CLASSES = 10
#: What stands for a GPU that computes while the cores of the host have nothing else to do.
ASLEEP = "asleep"
#: A training step of ART on the tiny backbone of configs/motion.yaml, on this device.
ART_STEP = "art, tiny"


@dataclass(frozen=True)
class LoaderShape:
    """What is loaded.

    Attributes:
        clips: of the training split.
        batch: clips a batch.
        frames: of a clip.
        frame_size: the side of the square frames, pixels.
    """

    clips: int = 48
    batch: int = 8
    frames: int = 16
    frame_size: int = 224


def clip_set(folder: Path, video: Path, clips: int) -> ClipSet:
    """A training split of copies of one file."""
    folder.mkdir()
    paths = [folder / f"{i}.mp4" for i in range(clips)]
    for path in paths:
        shutil.copyfile(video, path)
    names = tuple(f"class {i}" for i in range(CLASSES))
    return ClipSet("bench", "train", folder, tuple(Clip(p, i % CLASSES) for i, p in enumerate(paths)), names)


def measure_loader(clips: ClipSet, shape: LoaderShape, workers: int) -> dict[str, Any]:
    """One epoch with nothing done between batches.

    Returns:
        "first_batch_seconds", with the start of the workers, and "clips_per_second" of the batches after it.
    """
    loader, seconds = _loader(clips, shape, workers), []
    start = time.perf_counter()
    for _ in _epoch(loader):
        seconds.append(time.perf_counter() - start)
    loader.close()
    rate = shape.batch * (len(seconds) - 1) / (seconds[-1] - seconds[0])
    return {"first_batch_seconds": seconds[0], "clips_per_second": rate}


def measure_waiting(
    clips: ClipSet, shape: LoaderShape, workers: int, step: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """One epoch with a model step a batch; the first batch does not count, since workers start with it.

    Returns:
        "step_seconds" and "waiting_seconds", both a batch, and "waiting_share" of their sum.
    """
    loader = _loader(clips, shape, workers)
    batches = _epoch(loader)
    step(next(batches))
    waiting = stepping = 0.0
    count = 0
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        middle = time.perf_counter()
        if batch is None:
            break
        step(batch)
        waiting, stepping, count = waiting + middle - start, stepping + time.perf_counter() - middle, count + 1
    loader.close()
    return {
        "step_seconds": stepping / count,
        "waiting_seconds": waiting / count,
        "waiting_share": waiting / (waiting + stepping),
    }


def asleep(seconds: float) -> Callable[[dict[str, Any]], None]:
    """A step that leaves the cores to the workers, as a GPU does."""
    return lambda batch: time.sleep(seconds)


def art_step(shape: LoaderShape, device: torch.device) -> Callable[[dict[str, Any]], None]:
    """A training step of ART on the tiny backbone."""
    options = ARTOptions(
        backbone="tiny", num_frames=shape.frames, latent_dim=64, num_heads=2, feedforward_dim=128,
        enhancement_layers=0, activation_layers=2,
    )  # fmt: skip
    model = build_model("art", [f"class {i}" for i in range(CLASSES)], options).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(batch: dict[str, Any]) -> None:
        video, labels = batch["video"].to(device), batch["label"].to(device)
        video = model.centre_crop(video)
        terms = model.loss(model(video), labels).named()
        optimizer.zero_grad(set_to_none=True)
        terms["total"].backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _loader(clips: ClipSet, shape: LoaderShape, workers: int) -> Any:
    dataset = ClipDataset(clips, shape.frames, train=True, frame_size=shape.frame_size)
    return build_loader(dataset, shape.batch, workers=workers)


def _epoch(loader: Any) -> Iterator[dict[str, Any]]:
    loader.set_epoch(0)
    with untouched_random_state():
        yield from loader
