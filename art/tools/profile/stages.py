"""Which stage of the model is at work, forward and backward, told by hooks: the model is profiled as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from art.model.pretrained import VideoClassifier

#: In the order of the forward pass. "semantics" projects tokens and x_cls and selects from the bank; "aggregation"
#: links tracklets and pools them over time; "loss" is there in a training step.
STAGES = ("backbone", "semantics", "enhancement", "activation", "aggregation", "heads", "loss")

#: The modules of each stage that has some; the others are functions between modules.
MODULES = {
    "backbone": ("backbone",),
    "semantics": ("token_projection", "video_projection", "semantics"),
    "enhancement": ("enhancement",),
    "activation": ("activation",),
    "heads": ("final_head", "video_head"),
}

Enter = Callable[[str], None]


def parameters_of(model: VideoClassifier) -> dict[str, int]:
    """Parameters of each stage; trained or not."""
    return {
        stage: sum(
            parameter.numel()
            for name in MODULES.get(stage, ())
            if (module := getattr(model, name, None)) is not None
            for parameter in module.parameters()
        )
        for stage in STAGES
    }


@contextmanager
def entering(model: VideoClassifier, enter: Enter) -> Iterator[None]:
    """Within it ``enter(stage)`` is called whenever a pass of ``model`` comes into a stage, forward or backward.

    The loss is not the model's: whoever computes it tells of it, before it and before its backward pass. The engine of
    the backward pass takes the latest operation that is ready, so it goes through the stages in reverse; a boundary is
    an operation of its own that tells when its turn comes.
    """
    with ExitStack() as hooks:

        def before(name: str, stage: str, coming_from: str | None) -> None:
            def hook(_: nn.Module, arguments: Any) -> Any:
                arguments = arguments if coming_from is None else _bounded(arguments, enter, coming_from)
                enter(stage)
                return arguments

            hooks.callback(model.get_submodule(name).register_forward_pre_hook(hook).remove)

        def after(name: str, stage: str, following: str) -> None:
            def hook(_: nn.Module, __: Any, results: Any) -> Any:
                results = _bounded(results, enter, stage)
                enter(following)
                return results

            hooks.callback(model.get_submodule(name).register_forward_hook(hook).remove)

        before("backbone", "backbone", None)
        if hasattr(model, "enhancement"):
            after("backbone", "backbone", "semantics")
            before("enhancement", "enhancement", "semantics")
            before("activation", "activation", "enhancement")
            after("activation", "activation", "aggregation")
            before("final_head", "heads", "aggregation")
            after("final_head", "heads", "heads")
        else:
            after("backbone", "backbone", "heads")
        after("video_head", "heads", "heads")
        yield


class _Boundary(torch.autograd.Function):
    """The identity; its backward pass tells that the stage before it begins its own."""

    @staticmethod
    def forward(ctx: Any, enter: Enter, stage: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.enter, ctx.stage = enter, stage
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ctx.enter(ctx.stage)
        return (None, None, *gradients)


def _bounded(values: Any, enter: Enter, stage: str) -> Any:
    """The same values, each tensor among them behind one boundary."""
    leaves, structure = tree_flatten(values)
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for index, tensor in zip(places, _Boundary.apply(enter, stage, *(leaves[i] for i in places)), strict=True):
        leaves[index] = tensor
    return tree_unflatten(leaves, structure)
