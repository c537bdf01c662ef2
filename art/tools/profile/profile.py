"""What ``art profile`` does: a configuration's model, counted and measured."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from art.model.art_model import ARTModel
from art.model.pretrained import VideoClassifier, build_model
from art.model.semantics import TEMPLATES
from art.text import text_width
from art.tools.profile.count import count_stages
from art.tools.profile.measure import check_device, measure_stages
from art.train.config import Config, to_dict
from art.train.runtime import autocast, provenance, resolve_device


def profile(
    config: Config, *, clips: int = 1, classes: int = 100, repetitions: int = 5, measure: bool = True
) -> dict[str, Any]:
    """Count the model of a configuration stage by stage, and measure it on its device.

    Neither data nor checkpoint is needed: clips and bank are noise, which costs the same.

    Args:
        config: the run whose model it is.
        clips: B.
        classes: Y; heads and bank grow with it.
        repetitions: of each pass that is timed.
        measure: False counts only, which takes seconds for any size.

    Returns:
        "stages", one dict each with the fields of :class:`StageCount` and, where it was measured, "ms" and
        "peak_bytes" of :class:`StageMeasure`; and what was profiled where: "config", "clips", "classes", "device".

    Raises:
        ValueError: a number below 1; fewer classes than tracklets; a device that is not there or not looked into.
    """
    for name, value in (("clips", clips), ("classes", classes), ("repetitions", repetitions)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    device = resolve_device(config.device)
    if measure:
        check_device(device)
    build = model_maker(config, classes)
    precision = functools.partial(autocast, torch.device("cpu"), config.precision)
    stages = [asdict(count) for count in count_stages(build, clips=clips, precision=precision)]
    if measure:
        torch.manual_seed(config.seed)
        model = build().to(device)
        size = model.input_size
        video = torch.rand(clips, config.model.num_frames, 3, size, size, device=device)
        labels = torch.arange(clips, device=device) % classes
        precision = functools.partial(autocast, device, config.precision)
        found = measure_stages(model, video, labels, precision=precision, repetitions=repetitions)
        stages = [{**count, **asdict(measured)} for count, measured in zip(stages, found, strict=True)]
    there = [
        stage for stage in stages if any(stage[name] for name in ("parameters", "forward_macs", "activation_bytes"))
    ]
    return {
        "stages": there,
        "clips": clips,
        "classes": classes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "measured": measure,
        **provenance(),
        "config": to_dict(config),
    }


def model_maker(config: Config, classes: int) -> Callable[[], VideoClassifier]:
    """Makes the model of a configuration, its weights from scratch, its bank noise in the width of its text encoder:
    no file is read."""
    names = [f"class {index}" for index in range(classes)]
    options = dataclasses.replace(config.model, pretrained=None)
    if config.kind == "backbone":
        return functools.partial(build_model, config.kind, names, options)
    width = text_width(options.text_encoder, **options.text_options)
    bank = torch.randn(len(options.templates or TEMPLATES), classes, width)
    return functools.partial(ARTModel, names, semantics=bank, **vars(options))


def as_table(result: dict[str, Any]) -> str:
    """A profile as lines of text."""
    rows = [_HEADINGS[: None if result["measured"] else _COUNTED]]
    for stage in [*result["stages"], _total(result["stages"])]:
        row = [
            stage["stage"],
            f"{stage['parameters'] / 1e6:,.2f}",
            f"{stage['forward_macs'] / 1e9:,.2f}",
            f"{(stage['forward_macs'] + stage['backward_macs']) / 1e9:,.2f}",
            f"{stage['activation_bytes'] / 2**20:,.1f}",
        ]
        if result["measured"]:
            row += [_number(stage["ms"].get(name)) for name in ("inference", "forward", "backward")]
            row += [_mebibytes(stage["peak_bytes"], ("inference",)), _mebibytes(stage["peak_bytes"], _OF_A_STEP)]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(c.rjust(w) if index else c.ljust(w) for index, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    clips = "1 clip" if result["clips"] == 1 else f"{result['clips']} clips"
    model = result["config"]["model"]
    about = f"{model['backbone']}, {model['num_frames']} frames, {clips}, {result['config']['precision']}"
    where = f"; measured on {result['device']}, {result['threads']} threads" if result["measured"] else ""
    return "\n".join([about + where, "GMAC: 10⁹ multiply-adds; kept: for the backward pass", *lines, ""])


_OF_A_STEP = ("forward", "backward")
_COUNTED = 5
_HEADINGS = [
    "stage", "Mparameters", "GMAC", "GMAC, step", "MiB kept",
    "ms, inference", "ms, forward", "ms, backward", "peak MiB, inference", "peak MiB, step",
]  # fmt: skip


def _total(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums, and the largest of the peaks."""
    total: dict[str, Any] = {
        name: sum(stage[name] for stage in stages)
        for name in ("parameters", "forward_macs", "backward_macs", "activation_bytes")
    }
    for name, join in (("ms", sum), ("peak_bytes", max)):
        kinds = {kind for stage in stages for kind in stage.get(name, {})}
        total[name] = {kind: join(s[name][kind] for s in stages if kind in s[name]) for kind in kinds}
    return {"stage": "total", **total}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _mebibytes(peaks: dict[str, int], kinds: tuple[str, ...]) -> str:
    found = [peaks[kind] for kind in kinds if kind in peaks]
    return f"{max(found) / 2**20:,.1f}" if found else ""
