"""Making the ``motion`` data set: recorded human motion, rendered from many sides, with the true place of each joint.

The folder then holds ``clips/<split>/<class>_<number>.mp4``; for each split a table ``<split>.csv`` with the header
``path,label,class,…`` and how each clip was filmed; ``classes.txt``; ``joints.json`` with the joint positions in every
frame; and ``dataset.json`` with the settings.
"""

from __future__ import annotations

import colorsys
import contextlib
import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Generator, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from art.data.files import atomic_write
from art.data.motion.classes import CLASSES
from art.data.motion.filming import Filming, Job, film_in_worker, start_worker
from art.data.motion.render import TRACKED, Stage
from art.data.motion.takes import motions_folder
from art.data.motion.views import SPLITS, Shot, draw_shot, poses_of
from art.data.parallel import available_cores
from art.data.prepare.reencode import check_encoder

SETTINGS_FILE, JOINTS_FILE, CLASSES_FILE = "dataset.json", "joints.json", "classes.txt"
_MADE = (SETTINGS_FILE, JOINTS_FILE, CLASSES_FILE, "clips", "joints", *(f"{split}.csv" for split in SPLITS))


def prepare_motion(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    size: int = 112,
    frames: int = 24,
    fps: int = 12,
    train_per_class: int = 40,
    test_per_class: int = 16,
    workers: int | None = None,
    progress: bool = True,
    force: bool = False,
) -> None:
    """Make the data set, or what is missing of it: an interrupted call is continued by the same one.

    The result depends on the settings only, not on ``workers`` or on interruptions. With several workers, a script has
    to call this below ``if __name__ == "__main__":``, as for any use of processes.

    Args:
        root: the folder to put it into; created if need be.
        seed: of views, colours, speeds and phases.
        size: height and width in pixels, even.
        frames: frames a clip.
        fps: frames a second of the video files.
        train_per_class: training clips a class.
        test_per_class: test clips a class.
        workers: processes that render; None is one for each core that may be used.
        progress: show a progress bar.
        force: make everything again, whatever settings an earlier result in ``root`` has.

    Raises:
        ValueError: a setting is out of range; ``root`` holds other files, or a result of other settings.
        ModuleNotFoundError: the package with the recordings, or the encoder, is not installed.
    """
    settings = {"seed": seed, "size": size, "frames": frames, "fps": fps}
    counts = {"train": train_per_class, "test": test_per_class}
    settings |= {f"{split}_per_class": count for split, count in counts.items()}
    _check_settings(settings, workers)
    filming = Filming(Path(root), seed, size, frames, fps)
    names = [motion_class.name for motion_class in CLASSES]
    _claim(filming.root, {"name": "motion", **settings, "classes": names, "fingerprint": _fingerprint()}, force)
    jobs = [Job(s, c, i) for s, count in counts.items() for c in range(len(CLASSES)) for i in range(count)]
    known = _known_joints(filming.root)
    missing = [job for job in jobs if not _is_finished(job, filming.root, known)]
    filmed = contextlib.closing(_film_all(filming, missing, workers or available_cores()))
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(missing), desc="motion", unit="clip", disable=not progress)
    with filmed as clips, bar:
        for _ in clips:
            bar.update()
    _write_tables(filming, jobs, known)
    shutil.rmtree(filming.root / "joints", ignore_errors=True)  # joints.json holds them now


def _check_settings(settings: dict[str, int], workers: int | None) -> None:
    for name, value in {**settings, "workers": 1 if workers is None else workers}.items():
        least = {"size": 16, "seed": 0}.get(name, 1)
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if settings["size"] % 2:
        raise ValueError(f"size must be even, which the video format asks for, got {settings['size']}")
    motions_folder()
    check_encoder()


def _claim(root: Path, settings: dict[str, Any], force: bool) -> None:
    """Make sure that ``root`` is empty, or holds (a part of) a result of these settings."""
    path = root / SETTINGS_FILE
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        if there.get("name") != settings["name"]:
            raise ValueError(f"root {root} holds the data set {there.get('name')!r}; expected an empty folder")
        if there == settings and not force:
            return
        if not force:
            differences = [
                _difference(key, there.get(key), value) for key, value in settings.items() if there.get(key) != value
            ]
            raise ValueError(
                f"root {root} was prepared with other settings: {'; '.join(differences)}. Choose another root, or make "
                "it again with --force (force=True)"
            )
        for name in _MADE:
            made = root / name
            if made.is_dir():
                shutil.rmtree(made)
            else:
                made.unlink(missing_ok=True)
    elif root.exists() and (not root.is_dir() or any(not p.name.startswith(".") for p in root.iterdir())):
        raise ValueError(
            f"root {root} holds something else (there is no {SETTINGS_FILE}); expected a new or empty folder"
        )
    root.mkdir(parents=True, exist_ok=True)
    _write_text(path, json.dumps(settings, indent=2) + "\n")


def _difference(key: str, there: object, asked: object) -> str:
    if key == "fingerprint":
        return "views or poses were drawn by another version of this package"
    if key == "classes":
        return "it has other classes"
    return f"{key} is {there}, asked for is {asked}"


def _fingerprint() -> str:
    """A short text that changes with how views are drawn and takes are edited: a result must not mix two ways."""
    digest = hashlib.sha256()
    for class_index, motion_class in enumerate(CLASSES):
        for split in SPLITS:
            shot = draw_shot(motion_class, split, seed=0, class_index=class_index, index=0, frames=8)
            poses = poses_of(motion_class, shot)
            view = np.hstack([np.ravel(value) for value in vars(shot.view).values()])
            for values in (view, shot.times, poses.root, poses.rotation, *poses.joints.values()):
                digest.update((np.round(values, 3) + 0.0).tobytes())  # + 0.0 turns -0.0 into 0.0
    return digest.hexdigest()[:16]


def _known_joints(root: Path) -> dict[str, Any]:
    path = root / JOINTS_FILE
    return json.loads(path.read_text(encoding="utf-8"))["clips"] if path.is_file() else {}


def _is_finished(job: Job, root: Path, known: dict[str, Any]) -> bool:
    return (root / job.path).is_file() and (job.path in known or job.joints_file(root).is_file())


def _film_all(filming: Filming, jobs: list[Job], workers: int) -> Generator[None, None, None]:
    """Render the clips, yielding after each."""
    workers = min(workers, len(jobs))
    if workers == 0:
        return
    if workers == 1:
        with Stage(filming.size) as stage:
            for job in jobs:
                filming.film(stage, job)
                yield
        return
    # Processes of their own from the start: a copy of one that has begun threads (PyTorch's, say) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(filming,))
    try:
        for done in as_completed([pool.submit(film_in_worker, job) for job in jobs]):
            done.result()
            yield
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a rendering process ended unexpectedly. Its message is above; in a script, prepare_motion must be called "
            'below if __name__ == "__main__":, or with workers=1'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # the clips in work are finished, after Ctrl-C too


def _write_tables(filming: Filming, jobs: Iterable[Job], known: dict[str, Any]) -> None:
    root = filming.root
    rows: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    joints: dict[str, Any] = {}
    for job in jobs:
        rows[job.split].append(_row(job, job.shot(filming.seed, filming.frames)))
        file = job.joints_file(root)
        joints[job.path] = np.round(np.load(file), 4).tolist() if file.is_file() else known[job.path]
    for split, lines in rows.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, lines[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        _write_text(root / f"{split}.csv", text.getvalue())
    _write_text(root / CLASSES_FILE, "".join(f"{motion_class.name}\n" for motion_class in CLASSES))
    content = {"names": list(TRACKED), "clips": joints}
    _write_text(root / JOINTS_FILE, json.dumps(content, separators=(",", ":")) + "\n")


def _row(job: Job, shot: Shot) -> dict[str, object]:
    view, motion_class = shot.view, CLASSES[job.class_index]
    numbers = {
        "yaw": view.yaw,
        "pitch": view.pitch,
        "distance": view.distance,
        "field_of_view": view.field_of_view,
        "speed": shot.speed,
        "start": float(shot.times[0]),
    }
    for name, hue, colour in (("body", shot.body_hue, view.body), ("floor", shot.floor_hue, view.floor)):
        _, saturation, value = colorsys.rgb_to_hsv(*colour)
        numbers |= {f"{name}_hue": hue, f"{name}_saturation": saturation, f"{name}_value": value}
    numbers |= {f"light_{axis}": value for axis, value in zip("xyz", view.light, strict=True)}
    named = {"path": job.path, "label": job.class_index, "class": motion_class.name, "take": motion_class.action.take}
    return {**named, **{name: round(value, 4) for name, value in numbers.items()}}


def _write_text(path: Path, text: str) -> None:
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
