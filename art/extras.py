"""Optional dependencies: imported on use, with an error that contains the command that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Libraries of the extra ``train``, which modules of training, reports, and figures import without ``import_extra``.
TRAIN_LIBRARIES = ("matplotlib", "omegaconf", "tensorboard", "tqdm", "yaml")


def import_extra(library: str, *, extra: str, needed_by: str, instead: str = "", uses_torch: bool = True) -> ModuleType:
    """Import an optional library.

    Args:
        library: name of the module.
        extra: the extra of this package that installs it.
        needed_by: the feature that requires it, for the error message.
        instead: an alternative, for the error message.
        uses_torch: False for a library that does not use torch, which is then not loaded.

    Raises:
        ModuleNotFoundError: If it is not installed. The message contains the command that installs it.
    """
    try:
        if uses_torch:
            _fix_torchvision_import()
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        alternative = f", or {instead}" if instead else ""
        raise ModuleNotFoundError(
            f"{needed_by} needs {library} ({error}): {install_command(extra)}{alternative}", name=error.name
        ) from error


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'art-kernels[{extra}]'"


def missing_extra_message(error: BaseException, needed_by: str) -> str | None:
    """Return the message for an import of a missing library of the extra ``train``, None for any other error."""
    library = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if library not in TRAIN_LIBRARIES:
        return None
    return f"{needed_by} needs {library}: {install_command('train')}"


def _fix_torchvision_import() -> None:
    """Make torchvision importable with a CPU-only torch.

    torchvision's CUDA wheel cannot load its operators there, and its import fails because it registers fakes for two of
    them. With their schemas defined, the second import succeeds; no library used here calls the operators.
    """
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return  # a library that requires it raises its own error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        import torch

        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define(
            "qnms(Tensor dets, Tensor scores, float iou_threshold, float dets_scale, int dets_zero_point) -> Tensor"
        )
        _LIBRARIES.append(library)  # schemas are removed when this object is deleted
        importlib.import_module("torchvision")


_LIBRARIES: list[torch.library.Library] = []
