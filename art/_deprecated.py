"""Import paths and names of earlier versions, kept working with a ``DeprecationWarning``."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

#: Old module or package → the one that replaces it. A submodule follows its package unless it is listed itself.
MOVED = {
    "art.ablation": "art.experiments",
    "art.backbones.interface": "art.backbones.base",
    "art.bank": "art.tools.bank",
    "art.baseline": "art.model.pretrained",
    "art.data.clips": "art.data.dataset",
    "art.data.motion.classes": "art.data.motion.takes",
    "art.data.registry": "art.data.datasets.base",
    "art.data.video": "art.data.decoding.video",
    "art.engine": "art.train",
    "art.engine.compare": "art.experiments.compare",
    "art.engine.config_file": "art.train.config",
    "art.engine.evaluate": "art.eval.evaluate",
    "art.engine.metrics": "art.eval.metrics",
    "art.engine.observers": "art.train.logging",
    "art.engine.predictions": "art.eval.predictions",
    "art.engine.train": "art.train.loop",
    "art.explain": "art.tools.explain",
    "art.export": "art.tools.export",
    "art.hub": "art.tools.hub",
    "art.losses": "art.model.losses",
    "art.options": "art.model.options",
    "art.prediction": "art.tools.predict",
    "art.prediction.ray_data": "art.tools.predict.parquet",
    "art.pretrained": "art.model.loading",
    "art.profiling": "art.tools.profile",
    "art.regions": "art.model.regions",
    "art.semantics": "art.model.semantics",
    "art.serving": "art.tools.serve",
    "art.tracklets": "art.model.art_model",
    "art.visualize": "art.eval.report",
}


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook that resolves an old module name to the module that replaces it, not to a copy."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for an old name, and None for any other name."""
        old = name if name.startswith("art.") else ""
        while old not in MOVED:
            old = old.rpartition(".")[0]
            if not old:
                return None
        new = MOVED[old] + name.removeprefix(old)
        try:
            module = importlib.import_module(new)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{new}.".startswith(f"{error.name}."):
                raise  # a missing dependency
            raise ModuleNotFoundError(f"{name} was removed; see CHANGELOG.md", name=name) from None
        warnings.warn(f"{name} has moved to {new}", DeprecationWarning, stacklevel=2)
        return importlib.machinery.ModuleSpec(name, self, loader_state=module)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the existing module."""
        module: ModuleType = spec.loader_state
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec, which the import system has replaced."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


def renamed_names(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for ``module`` that resolves old names (old → new)."""

    def resolve(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(f"{module}.{name} is now {renamed[name]}", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], renamed[name])

    return resolve


def renamed_attribute(old: str, new: str) -> property:
    """Return a property ``old`` that warns and resolves to the attribute or method ``new``."""

    def resolve(self: object) -> Any:
        warnings.warn(f"{type(self).__name__}.{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(self, new)

    return property(resolve, doc=f"Deprecated alias of ``{new}``.")
