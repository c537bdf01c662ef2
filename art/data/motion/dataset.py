"""The motion dataset: recorded human motion, rendered from many viewpoints, with the true position of each joint.

Its directory contains ``clips/<split>/<class>_<number>.mp4``; for each split a table ``<split>.csv`` with the header
``path,label,class,…`` and the parameters of each clip; ``classes.txt``; ``joints.json`` with the joint positions in
every frame; and ``dataset.json`` with the settings.
"""

from __future__ import annotations

import colorsys
import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from art.data.datasets.base import ClipSet, mirror_by_words, register_dataset, suggest
from art.data.datasets.custom import clips_of_table, read_classes
from art.data.files import write_text
from art.data.motion.render import SPLITS, TRACKED, ClipJob, clip_poses, render_clip, sample_params
from art.data.motion.takes import CLASSES, recordings_directory
from art.data.parallel import available_cores, map_processes
from art.data.prepare.reencode import check_encoder
from art.terminal import Progress

SETTINGS_FILE, JOINTS_FILE, CLASSES_FILE = "dataset.json", "joints.json", "classes.txt"
_OUTPUTS = (SETTINGS_FILE, JOINTS_FILE, CLASSES_FILE, "clips", "joints", *(f"{split}.csv" for split in SPLITS))


@register_dataset("motion", description="embedded dataset: recorded human motion, rendered", splits=tuple(SPLITS))
def open_motion(root: Path, split: str) -> ClipSet:
    """Open a split of the dataset in ``root``. A horizontal flip swaps left and right in the class names.

    Raises:
        FileNotFoundError: the dataset is missing or incomplete.
        ValueError: the split is unknown.
    """
    command = f"art prepare motion --root {root}"
    if not (root / SETTINGS_FILE).is_file():
        raise FileNotFoundError(f"root {root} does not contain the motion dataset; create it with: {command}")
    names = read_classes(root)
    if names is None or not (root / JOINTS_FILE).is_file():
        raise FileNotFoundError(f"the motion dataset in {root} is incomplete; resume with the same settings: {command}")
    clips = clips_of_table(root / f"{split}.csv", root, names)
    return ClipSet("motion", split, root, clips, names, mirror=mirror_by_words(names))


class Joints:
    """True joint positions in the dataset in ``root``. ``names`` are the tracked joints, in the order of the positions;
    ``frame_size`` is the height and width of the frames in pixels."""

    def __init__(
        self, root: Path, names: Sequence[str], frame_size: int, clips: dict[str, list[list[list[float]]]]
    ) -> None:
        self.root, self.names, self.frame_size, self._clips = root, tuple(names), frame_size, clips

    def __len__(self) -> int:
        return len(self._clips)

    def of(self, path: str | os.PathLike[str]) -> Float[np.ndarray, "t joints 2"]:
        """Return the (x, y) of each joint in each frame of a clip, as fractions of the image width and height, with
        (0, 0) at the top left; joints out of view are outside 0..1. The path is relative to the root or includes it.

        Raises:
            ValueError: the clip does not exist.
        """
        clip = Path(path)
        key = (clip.relative_to(self.root) if clip.is_relative_to(self.root) else clip).as_posix()
        if key not in self._clips:
            raise ValueError(f"clip {path} is not one of the {len(self)} clips in {self.root / JOINTS_FILE}")
        return np.array(self._clips[key], dtype=np.float64)


def read_joints(root: str | os.PathLike[str]) -> Joints:
    """Read the joint positions of the dataset prepared in ``root``."""
    path = Path(root) / JOINTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; create the dataset with: art prepare motion --root {root}")
    content = json.loads(path.read_text(encoding="utf-8"))
    settings = json.loads((Path(root) / SETTINGS_FILE).read_text(encoding="utf-8"))
    return Joints(Path(root), content["names"], settings["size"], content["clips"])


def defining_joints(class_names: Sequence[str]) -> list[str | None]:
    """Return for each class the joint that distinguishes it from similar classes; None if the whole body does.

    Raises:
        ValueError: a name is not a class of the dataset.
    """
    known = {motion_class.name: motion_class.joint for motion_class in CLASSES}
    for name in class_names:
        if name not in known:
            raise ValueError(f"class {name!r} is not one of the motion dataset{suggest(name, tuple(known))}")
    return [known[name] for name in class_names]


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
    """Render the dataset, or the missing part of it: calling it again resumes an interrupted call.

    The result depends only on the settings, not on ``workers`` or interruptions. With several workers, a script must
    call this below ``if __name__ == "__main__":``.

    Args:
        root: directory for the dataset; created if it does not exist.
        seed: seed of views, colors, speeds and phases.
        size: height and width in pixels, even.
        frames: frames per clip.
        fps: frame rate of the video files.
        train_per_class: training clips per class.
        test_per_class: test clips per class.
        workers: number of processes; None is one per available core.
        progress: show a progress bar.
        force: replace an existing result, even one with other settings.

    Raises:
        ValueError: a setting is out of range, or ``root`` contains other files or a result with other settings.
        ModuleNotFoundError: the package with the recordings or the video encoder is not installed.
    """
    settings = {"seed": seed, "size": size, "frames": frames, "fps": fps}
    counts = {"train": train_per_class, "test": test_per_class}
    root, shared = Path(root), dict(settings)
    settings |= {f"{split}_per_class": count for split, count in counts.items()}
    _check_settings(settings, workers)
    names = [motion_class.name for motion_class in CLASSES]
    _claim_directory(root, {"name": "motion", **settings, "classes": names, "fingerprint": _fingerprint()}, force)
    jobs = [
        ClipJob(root, split, class_index, index, **shared)
        for split, count in counts.items()
        for class_index in range(len(CLASSES))
        for index in range(count)
    ]
    path = root / JOINTS_FILE
    known = json.loads(path.read_text(encoding="utf-8"))["clips"] if path.is_file() else {}
    missing = [
        job for job in jobs if not (root / job.path).is_file() or not (job.path in known or job.joints_file.is_file())
    ]
    workers = max(1, min(workers or available_cores(), len(missing)))
    bar = Progress("motion", len(jobs), "clip", initial=len(jobs) - len(missing), show=progress)
    with contextlib.closing(map_processes(render_clip, missing, workers)) as rendered, bar:
        for _ in rendered:
            bar.update()
    _write_tables(root, jobs, known)
    shutil.rmtree(root / "joints", ignore_errors=True)  # now in joints.json


def _check_settings(settings: dict[str, int], workers: int | None) -> None:
    for name, value in {**settings, "workers": 1 if workers is None else workers}.items():
        least = {"size": 16, "seed": 0}.get(name, 1)
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if settings["size"] % 2:
        raise ValueError(f"size must be even, because of the video format, got {settings['size']}")
    recordings_directory()
    check_encoder()


def _claim_directory(root: Path, settings: dict[str, Any], force: bool) -> None:
    """Ensure that ``root`` is empty or contains a (partial) result with these settings, and write the settings."""
    path = root / SETTINGS_FILE
    if path.is_file():
        existing = json.loads(path.read_text(encoding="utf-8"))
        if existing.get("name") != settings["name"]:
            raise ValueError(f"root {root} contains the dataset {existing.get('name')!r}; expected an empty directory")
        if existing == settings and not force:
            return
        if not force:
            changed = [key for key, value in settings.items() if existing.get(key) != value]
            differences = "; ".join(_describe_change(key, existing.get(key), settings[key]) for key in changed)
            raise ValueError(
                f"root {root} was prepared with other settings: {differences}. Use another root, or replace it with "
                "--force (force=True)"
            )
        for output in (root / name for name in _OUTPUTS):
            if output.is_dir():
                shutil.rmtree(output)
            else:
                output.unlink(missing_ok=True)
    elif root.exists() and (not root.is_dir() or any(not p.name.startswith(".") for p in root.iterdir())):
        raise ValueError(
            f"root {root} contains other files (and no {SETTINGS_FILE}); expected a new or empty directory"
        )
    root.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=2) + "\n")


def _describe_change(key: str, existing: object, requested: object) -> str:
    if key == "fingerprint":
        return "its views or poses were computed by another version of this package"
    if key == "classes":
        return "it has other classes"
    return f"{key} is {existing}, requested {requested}"


def _fingerprint() -> str:
    """Hash of sampled parameters and poses. It changes with their computation, so that versions are not mixed."""
    digest = hashlib.sha256()
    for class_index, motion_class in enumerate(CLASSES):
        for split in SPLITS:
            params = sample_params(motion_class, split, seed=0, class_index=class_index, index=0, frames=8)
            poses = clip_poses(motion_class, params)
            view = np.hstack([np.ravel(value) for value in vars(params.view).values()])
            for values in (view, params.times, poses.root, poses.rotation, *poses.joints.values()):
                digest.update((np.round(values, 3) + 0.0).tobytes())  # + 0.0 turns -0.0 into 0.0
    return digest.hexdigest()[:16]


def _write_tables(root: Path, jobs: Iterable[ClipJob], known: dict[str, Any]) -> None:
    rows: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    joints: dict[str, Any] = {}
    for job in jobs:
        rows[job.split].append(_table_row(job))
        file = job.joints_file
        joints[job.path] = np.round(np.load(file), 4).tolist() if file.is_file() else known[job.path]
    for split, lines in rows.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, lines[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_text(root / f"{split}.csv", text.getvalue())
    write_text(root / CLASSES_FILE, "".join(f"{motion_class.name}\n" for motion_class in CLASSES))
    content = {"names": list(TRACKED), "clips": joints}
    write_text(root / JOINTS_FILE, json.dumps(content, separators=(",", ":")) + "\n")


def _table_row(job: ClipJob) -> dict[str, object]:
    params, motion_class = job.params, CLASSES[job.class_index]
    view = params.view
    numbers = {name: getattr(view, name) for name in ("yaw", "pitch", "distance", "field_of_view")}
    numbers |= {"speed": params.speed, "start": float(params.times[0])}
    for name, hue, color in (("body", params.body_hue, view.body), ("floor", params.floor_hue, view.floor)):
        _, saturation, value = colorsys.rgb_to_hsv(*color)
        numbers |= {f"{name}_hue": hue, f"{name}_saturation": saturation, f"{name}_value": value}
    numbers |= {f"light_{axis}": value for axis, value in zip("xyz", view.light, strict=True)}
    names = {"path": job.path, "label": job.class_index, "class": motion_class.name, "take": motion_class.action.take}
    return {**names, **{name: round(value, 4) for name, value in numbers.items()}}
