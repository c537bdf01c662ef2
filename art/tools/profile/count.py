"""Parameters, operations and activations of each stage, counted from shapes: no memory, and no weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from art.model.pretrained import VideoClassifier
from art.tools.profile.stages import STAGES, entering, parameters_of
from art_kernels.flops import flop_formulas


@dataclass(frozen=True)
class StageCount:
    """Of one stage, in a pass over some clips.

    Attributes:
        stage: one of ``STAGES``.
        parameters: trained or not.
        forward_macs: multiply-adds of the matrix products and convolutions of the forward pass. The literature on video
            models reports these (in units of 10⁹: GMAC), often under the name of FLOPs.
        backward_macs: those of the backward pass, with what it computes again.
        activation_bytes: what the forward pass keeps for the backward pass.
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

    It is done on tensors without numbers, on the CPU: a backend for GPUs takes the same products.

    Args:
        build: makes the model; called where parameters hold no numbers, so a large one takes seconds and no memory.
        clips: B.
        precision: makes the context of a forward pass, such as autocast.
    """
    with torch.device("meta"):
        model = build().train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        _put_on_cpu(model)
        video = torch.empty(clips, model.options.num_frames, 3, model.input_size, model.input_size)
        labels = torch.zeros(clips, dtype=torch.long)
        with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
            operations = _Tally(counter)
            kept = _Kept(operations, (*model.parameters(), *model.buffers(), video))
            with kept, precision(), entering(model, operations.enter):
                output = model(video)
                operations.enter("loss")
                loss = model.loss(output, labels).total
            forward = operations.closed()
            operations.enter("loss")
            loss.backward()
            backward = operations.closed()
    parameters = parameters_of(model)
    return [
        StageCount(stage, parameters[stage], forward[stage], backward[stage], kept.bytes[stage]) for stage in STAGES
    ]


def _put_on_cpu(model: nn.Module) -> None:
    """As if parameters and buffers were on a CPU: where only shapes are known, the operators for it are asked."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(_like(parameter), requires_grad=parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, _like(buffer), persistent=name not in module._non_persistent_buffers_set)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


class _Tally:
    """Multiply-adds by stage: what the counter has counted since the last stage was entered belongs to that."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.macs = dict.fromkeys(STAGES, 0)
        self.stage = STAGES[0]
        self.taken = 0

    def enter(self, stage: str) -> None:
        """A stage begins."""
        total = self.counter.get_total_flops()
        self.macs[self.stage] += (total - self.taken) // 2
        self.stage, self.taken = stage, total

    def closed(self) -> dict[str, int]:
        """What was counted so far; counting begins anew."""
        self.enter(self.stage)
        counted, self.macs = self.macs, dict.fromkeys(STAGES, 0)
        return counted


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Bytes by stage that autograd keeps, each storage once; those of ``others`` are there anyway."""

    def __init__(self, tally: _Tally, others: Iterable[Tensor]) -> None:
        self.bytes = dict.fromkeys(STAGES, 0)
        seen = {_storage(tensor) for tensor in others}

        def keep(tensor: Tensor) -> Tensor:
            storage = _storage(tensor)
            if storage not in seen:
                seen.add(storage)
                self.bytes[tally.stage] += tensor.untyped_storage().nbytes()
            return tensor

        super().__init__(keep, lambda tensor: tensor)


def _storage(tensor: Tensor) -> int:
    """What tells storages apart while they are kept."""
    return tensor.untyped_storage()._cdata
