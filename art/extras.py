"""Libraries that only some choices need: imported when they are needed, with an error that says how to get them."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def import_extra(library: str, *, extra: str, needed_by: str, instead: str = "", uses_torch: bool = True) -> ModuleType:
    """Module ``library``.

    Args:
        library: name of the module.
        extra: the extra of this package that installs it.
        needed_by: what the user chose, for the error.
        instead: what else could be chosen, for the error.
        uses_torch: False: it has nothing to do with torch, which is then not loaded for it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        if uses_torch:
            _declare_missing_torchvision_operators()
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        or_else = f", or {instead}" if instead else ""
        raise ModuleNotFoundError(
            f"{needed_by} needs {library} ({error}): pip install 'art-kernels[{extra}]'{or_else}"
        ) from error


def _declare_missing_torchvision_operators() -> None:
    """Let torchvision import beside a CPU-only torch.

    torchvision's wheel, built for CUDA, cannot load its operators there, and then stops over two schemas for which it
    registers fakes. No library here calls either; with the schemas declared the second import succeeds.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return  # a library that needs it says so itself
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import torch

        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define(
            "qnms(Tensor dets, Tensor scores, float iou_threshold, float dets_scale, int dets_zero_point) -> Tensor"
        )
        _KEPT_ALIVE.append(library)  # the schemas go with the object that declared them
        importlib.import_module("torchvision")


_KEPT_ALIVE: list[torch.library.Library] = []
