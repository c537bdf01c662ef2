"""Stages of a model, entered through hooks, and their parameters, operations and activations counted from shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from art.model.pretrained import VideoClassifier
from art_kernels.flops import flop_formulas

#: In the order of the forward pass. "semantics" projects tokens and x_cls and selects from the bank; "aggregation"
#: links tracklets and pools them over time; "loss" occurs only in a training step.
STAGES = ("backbone", "semantics", "enhancement", "activation", "aggregation", "heads", "loss")

#: Modules of each stage; the other stages are functions between modules.
MODULES = {
    "backbone": ("backbone",),
    "semantics": ("token_projection", "video_projection", "semantics"),
    "enhancement": ("enhancement",),
    "activation": ("activation", "evidence"),
    "heads": ("final_head", "video_head"),
}

Enter = Callable[[str], None]


def count_parameters(model: VideoClassifier) -> dict[str, int]:
    """Return the number of parameters of each stage, trainable or not."""
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
def stage_hooks(model: VideoClassifier, enter: Enter) -> Iterator[None]:
    """Within this context ``enter(stage)`` is called when a pass of ``model`` enters a stage, forward or backward.

    The loss is outside the model: the caller reports it, before the loss and before its backward pass. Autograd runs
    the latest ready operation, so it visits the stages in reverse; a boundary is an identity operation that calls
    ``enter`` in its backward pass.
    """
    with ExitStack() as hooks:

        def before(name: str, stage: str, previous: str | None) -> None:
            def hook(_: nn.Module, arguments: Any) -> Any:
                arguments = arguments if previous is None else _with_boundary(arguments, enter, previous)
                enter(stage)
                return arguments

            hooks.callback(model.get_submodule(name).register_forward_pre_hook(hook).remove)

        def after(name: str, stage: str, following: str) -> None:
            def hook(_: nn.Module, __: Any, results: Any) -> Any:
                results = _with_boundary(results, enter, stage)
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
        elif hasattr(model, "evidence"):
            after("backbone", "backbone", "heads")
            before("evidence", "activation", "heads")
            after("evidence", "activation", "aggregation")
        else:
            after("backbone", "backbone", "heads")
        after("video_head", "heads", "heads")
        yield


class _Boundary(torch.autograd.Function):
    """Identity whose backward pass reports that the preceding stage starts its backward pass."""

    @staticmethod
    def forward(ctx: Any, enter: Enter, stage: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.enter, ctx.stage = enter, stage
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        ctx.enter(ctx.stage)
        return (None, None, *gradients)


def _with_boundary(values: Any, enter: Enter, stage: str) -> Any:
    """Pass all tensors in `values` through one boundary."""
    leaves, structure = tree_flatten(values)
    indices = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    for index, tensor in zip(indices, _Boundary.apply(enter, stage, *(leaves[i] for i in indices)), strict=True):
        leaves[index] = tensor
    return tree_unflatten(leaves, structure)


@dataclass(frozen=True)
class StageCount:
    """Counts of one stage for a training step over some clips.

    Attributes:
        stage: one of ``STAGES``.
        parameters: trainable or not.
        forward_macs: multiply-adds of the matrix products and convolutions of the forward pass. Papers on video models
            report these (in 10⁹: GMAC), often as FLOPs.
        backward_macs: those of the backward pass, including recomputation.
        activation_bytes: saved by the forward pass for the backward pass.
    """

    stage: str
    parameters: int
    forward_macs: int
    backward_macs: int
    activation_bytes: int


def count_stages(
    build: Callable[[], VideoClassifier], *, clips: int = 1, precision: Callable[[], AbstractContextManager[object]]
) -> list[StageCount]:
    """Count a training step of a model.

    Runs on fake CPU tensors without data; backends for GPUs compute the same products.

    Args:
        build: creates the model; called on the meta device, so a large one takes seconds and no memory.
        clips: B.
        precision: returns the context of a forward pass, such as autocast.
    """
    with torch.device("meta"):
        model = build().train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fake_cpu_tensors(model)
        video = torch.empty(clips, model.options.num_frames, 3, model.input_size, model.input_size)
        labels = torch.zeros(clips, dtype=torch.long)
        with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
            macs = _MacCounter(counter)
            saved = _SavedBytes(macs, (*model.parameters(), *model.buffers(), video))
            with saved, precision(), stage_hooks(model, macs.enter):
                output = model(video)
                macs.enter("loss")
                loss = model.loss(output, labels).total
            forward = macs.reset()
            macs.enter("loss")
            loss.backward()
            backward = macs.reset()
    parameters = count_parameters(model)
    return [
        StageCount(stage, parameters[stage], forward[stage], backward[stage], saved.bytes[stage]) for stage in STAGES
    ]


def _fake_cpu_tensors(model: nn.Module) -> None:
    """Replace parameters and buffers by fake CPU tensors, so that the operators of the CPU are dispatched."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(_empty_cpu(parameter), requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, _empty_cpu(buffer), persistent=name not in module._non_persistent_buffers_set)


def _empty_cpu(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


class _MacCounter:
    """Multiply-adds by stage: the counter's increase since a stage was entered belongs to that stage."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.macs = dict.fromkeys(STAGES, 0)
        self.stage = STAGES[0]
        self.counted = 0

    def enter(self, stage: str) -> None:
        """Start a stage."""
        total = self.counter.get_total_flops()
        self.macs[self.stage] += (total - self.counted) // 2
        self.stage, self.counted = stage, total

    def reset(self) -> dict[str, int]:
        """Return the counts and start again from zero."""
        self.enter(self.stage)
        counted, self.macs = self.macs, dict.fromkeys(STAGES, 0)
        return counted


class _SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Bytes saved by autograd, by stage; each storage counts once, and those of ``others`` do not count."""

    def __init__(self, counter: _MacCounter, others: Iterable[Tensor]) -> None:
        self.bytes = dict.fromkeys(STAGES, 0)
        seen = {_storage_id(tensor) for tensor in others}

        def record(tensor: Tensor) -> Tensor:
            storage = _storage_id(tensor)
            if storage not in seen:
                seen.add(storage)
                self.bytes[counter.stage] += tensor.untyped_storage().nbytes()
            return tensor

        super().__init__(record, lambda tensor: tensor)


def _storage_id(tensor: Tensor) -> int:
    """Identity of a storage while it is alive."""
    return tensor.untyped_storage()._cdata
