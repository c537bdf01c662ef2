"""`tracklet_nce`: the public operation, its checks and its choice of backend."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from art_kernels._core import backends
from art_kernels._core.checks import (
    check_flag,
    check_floating,
    check_ids,
    check_number,
    check_same_device,
    check_same_dtype,
    check_sizes,
)
from art_kernels._core.precision import FLOATING, accumulation_dtype, autocast_as_matmul, without_autocast
from art_kernels.tracklet_nce import native, reference
from art_kernels.tracklet_nce.loss import mean_loss
from art_kernels.tracklet_nce.passes import Pairs, Statistics
from art_kernels.tracklet_nce.registration import passes, tracklet_nce_forward
from art_kernels.tracklet_nce.rules import PositiveRule, Positives, function_of, pairs_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch.distributed import ProcessGroup

_NAME = "tracklet_nce"


def _fused(
    anchors: Tensor, candidates: Tensor, pairs: Pairs, temperature: Tensor, symmetric: bool, backend: str
) -> Statistics:
    ids = (pairs.anchor_ids, pairs.candidate_ids, pairs.excluded, pairs.rule)
    return Statistics(*tracklet_nce_forward(anchors, candidates, *ids, temperature, symmetric, backend))


passes["torch"] = native
backends.register(_NAME, "torch", functools.partial(_fused, backend="torch"))
backends.register(_NAME, "reference", reference.tracklet_nce)
try:
    from art_kernels.tracklet_nce import launch
except ImportError as error:
    backends.register_missing(_NAME, "triton", f"triton cannot be imported: {error}")
else:
    passes["triton"] = launch
    backends.register(
        _NAME, "triton", functools.partial(_fused, backend="triton"), launch.unsupported_reason, opt_in=launch.opt_in
    )


def tracklet_nce(
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    positives: Int[Tensor, " m"] | tuple[Int[Tensor, " m"], Int[Tensor, " n"]] | Positives,
    *,
    temperature: float | Float[Tensor, ""],
    symmetric: bool = False,
    excluded: Int[Tensor, " m"] | None = None,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Float[Tensor, ""]:
    """Contrast across a batch, and across devices: InfoNCE, and with several positives the supervised contrast.

    With logits l_ij = ⟨a_i, c_j⟩ / temperature the loss of an anchor is log Σ_j exp l_ij less the mean of l_ij over its
    positive candidates j: with one positive the cross-entropy (InfoNCE, van den Oord et al. 2018, arXiv 1807.03748),
    with several the supervised contrast in its "out" form (Khosla et al. 2020, arXiv 2004.11362). The result is the
    mean over the anchors that have a positive, 0 where none has. No matrix of M by N elements is made, neither of
    logits nor of positives, except by backend "reference" and in gradients of second order.

    Products are plain dot products. For cosines normalise anchors and candidates first, as with
    `torch.nn.functional.normalize`.

    Args:
        anchors: [M,C]; float16, bfloat16, float32 or float64.
        candidates: [N,C], of the same dtype.
        positives: which pairs are positive, one of
            - an int64 tensor [M]: the index of each anchor's one positive candidate, or -1 for none. Whether an index
              is in range is not checked, as the host would have to wait for the device: an index that no candidate has
              is no positive, and its anchor takes no part;
            - a pair of int64 tensors [M] and [N]: a label of each anchor and of each candidate, positive where equal;
            - `Positives`: what a `positive_rule` gives for ids of anchors and candidates, [M] and [N] int64.
        temperature: what the products are divided by: a number above 0, or a tensor without dimensions, which may
            carry a gradient. Of a tensor the value is not checked, as the host would have to wait for the device: one
            that is not above 0 gives NaN.
        symmetric: take the mean of this and of the same with anchors and candidates exchanged, as CLIP does (Radford et
            al. 2021, arXiv 2103.00020).
        excluded: [M] int64, for each anchor the index of a candidate with which it makes no pair, neither a positive
            nor another: itself where anchors and candidates are the same. -1 (or an index that no candidate has) is
            none.
        group: processes over which to contrast: the candidates of all of them are gathered, rank by rank, with their
            labels or ids, and an index (in `positives` and `excluded`) counts into those gathered. Every process of the
            group must call this, each with its own M and N and with the same C, dtype and options. The mean of the
            results over the processes, and so that of their gradients, which `DistributedDataParallel` takes, is the
            result for the whole batch in one process. None is this process alone. The host waits for the sizes, and
            `torch.compile` breaks its graph here.
        backend: "triton", "torch", "reference", or None to choose (`art_kernels._core.backends`).

    Returns:
        The loss, a scalar in float32 (float64 for float64). Under autocast anchors and candidates are cast to the
        autocast dtype first, as for a matrix product; sums are taken in float32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value, processes that disagree, or a backend that cannot
            serve these tensors.

    Examples:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from art_kernels import tracklet_nce
        >>> one, two = (F.normalize(torch.randn(8, 16), dim=-1) for _ in range(2))
        >>> loss = tracklet_nce(one, two, torch.arange(8), temperature=0.07)
        >>> torch.allclose(loss, F.cross_entropy(one @ two.T / 0.07, torch.arange(8)), atol=1e-5)
        True
    """
    check_floating(_NAME, "anchors", anchors, "[M,C]")
    check_floating(_NAME, "candidates", candidates, "[N,C]")
    check_sizes(_NAME, "candidates", candidates, "[N,C]", (candidates.shape[0], anchors.shape[1]))
    check_same_device(_NAME, "candidates", candidates, "anchors", anchors)
    _check_positives(positives, anchors, candidates)
    _check_temperature(temperature, anchors.device)
    check_flag(_NAME, "symmetric", symmetric)
    if excluded is not None:
        check_ids(_NAME, "excluded", excluded, "[M]", (anchors.shape[0],), anchors.device)
    if group is not None:
        # Here, because what keeps the compiler out of it imports the compiler.
        from art_kernels.tracklet_nce import gather

        gather.check_group(_NAME, group)

    anchors, candidates = autocast_as_matmul(anchors), autocast_as_matmul(candidates)
    check_same_dtype(_NAME, "candidates", candidates, "anchors", anchors)
    wide = accumulation_dtype(anchors.dtype)
    if isinstance(temperature, Tensor):
        temperature = torch.where(temperature > 0, temperature, torch.nan).to(wide)
    else:
        temperature = torch.full((), temperature, dtype=wide, device=anchors.device)

    run = backends.implementation(_NAME, anchors, backend)
    with without_autocast(anchors.device):
        if group is not None:
            return gather.share_of_loss(
                run, anchors, candidates, positives, temperature, symmetric, excluded, group, operation=_NAME
            )
        pairs = pairs_of(positives, candidates.shape[0], excluded)
        rows, columns = run(anchors, candidates, pairs, temperature, symmetric)
        return (mean_loss(rows) + mean_loss(columns)) / 2 if symmetric else mean_loss(rows)


def _check_positives(positives: object, anchors: Tensor, candidates: Tensor) -> None:
    rows, count, device = anchors.shape[0], candidates.shape[0], anchors.device
    if isinstance(positives, Tensor):
        check_ids(_NAME, "positives", positives, "[M]", (rows,), device)
    elif isinstance(positives, Positives):
        check_ids(_NAME, "positives.anchor_ids", positives.anchor_ids, "[M]", (rows,), device)
        check_ids(_NAME, "positives.candidate_ids", positives.candidate_ids, "[N]", (count,), device)
        if not isinstance(positives.rule, PositiveRule):
            raise TypeError(
                f"{_NAME}: positives.rule is {positives.rule!r}, expected what art_kernels.positive_rule makes of a "
                "function; call that with the ids"
            )
        function_of(positives.rule.name)
    elif isinstance(positives, tuple | list) and len(positives) == 2:
        check_ids(_NAME, "positives[0]", positives[0], "[M]", (rows,), device)
        check_ids(_NAME, "positives[1]", positives[1], "[N]", (count,), device)
    else:
        raise TypeError(
            f"{_NAME}: positives is of type {type(positives).__name__}, expected an int64 torch.Tensor of shape [M] "
            "(the index of each anchor's positive, -1 for none), a pair of int64 tensors [M] and [N] (labels), or what "
            "a positive_rule gives for ids"
        )


def _check_temperature(temperature: object, device: torch.device) -> None:
    if not isinstance(temperature, Tensor):
        check_number(_NAME, "temperature", temperature, low=0.0, low_is_open=True)
        return
    if temperature.dim() > 0:
        raise ValueError(
            f"{_NAME}: temperature has shape {list(temperature.shape)}, expected a number or a tensor without "
            "dimensions; take one element, or squeeze it"
        )
    if temperature.dtype not in FLOATING:
        raise TypeError(
            f"{_NAME}: temperature has dtype {temperature.dtype}, expected float16, bfloat16, float32 or float64; "
            "convert it with temperature.float()"
        )
    if temperature.device != device:
        raise ValueError(
            f"{_NAME}: temperature is on {temperature.device}, expected {device}, where anchors is; "
            f"move it with temperature.to({str(device)!r})"
        )
