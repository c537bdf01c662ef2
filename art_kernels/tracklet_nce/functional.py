"""`tracklet_nce`: argument checks, choice of the backend, and registration of the backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from art_kernels._core import backends
from art_kernels._core.autograd import OperatorSpec, loop_over_samples, register_backend
from art_kernels._core.checks import (
    check_flag,
    check_floating,
    check_ids,
    check_number,
    check_same_device,
    check_same_dtype,
    check_sizes,
    describe,
)
from art_kernels._core.precision import FLOATING, accumulation_dtype, autocast_as_matmul, without_autocast
from art_kernels.tracklet_nce import reference
from art_kernels.tracklet_nce.reference import Arguments, mean_loss, pair_ids

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch.distributed import ProcessGroup

_NAME = "tracklet_nce"


def tracklet_nce(
    anchors: Float[Tensor, "m c"],
    candidates: Float[Tensor, "n c"],
    positives: Int[Tensor, " m"] | tuple[Int[Tensor, " m"], Int[Tensor, " n"]],
    *,
    temperature: float | Float[Tensor, ""],
    symmetric: bool = False,
    excluded: Int[Tensor, " m"] | None = None,
    group: ProcessGroup | None = None,
    backend: str | None = None,
) -> Float[Tensor, ""]:
    """Compute a contrastive loss across a batch, and across devices: InfoNCE or the supervised contrastive loss.

    With logits l_ij = ⟨a_i, c_j⟩ / temperature, the loss of an anchor is log Σ_j exp l_ij minus the mean of l_ij over
    its positive candidates j: with one positive the cross-entropy (InfoNCE, van den Oord et al. 2018, arXiv
    1807.03748), with several the supervised contrastive loss in its "out" form (Khosla et al. 2020, arXiv 2004.11362).
    The result is the mean over the anchors with a positive, or 0 if there are none. Except by backend "reference", in
    second-order gradients and in forward mode, no M×N matrix of logits or positives is stored.

    Products are dot products. For cosines, first normalize anchors and candidates, for example with
    `torch.nn.functional.normalize`.

    Args:
        anchors: [M,C]; float16, bfloat16, float32 or float64.
        candidates: [N,C], of the same dtype.
        positives: the positive pairs, as one of
            - an int64 tensor [M]: the index of the positive candidate of each anchor, or -1 for none. The range is not
              checked, because that would synchronize: an anchor with an index of no candidate has no positive;
            - a pair of int64 tensors [M] and [N]: a label of each anchor and of each candidate, positive if equal.
        temperature: divisor of the products: a number above 0, or a differentiable tensor without dimensions. The value
            of a tensor is not checked, because that would synchronize: if it is not above 0, the result is NaN.
        symmetric: return the mean of this loss and the loss with anchors and candidates exchanged, as in CLIP (Radford
            et al. 2021, arXiv 2103.00020).
        excluded: [M] int64, for each anchor the index of a candidate that is neither a positive nor a negative, such as
            the anchor itself if anchors and candidates are the same. -1 (or an index of no candidate) is none.
        group: process group to contrast over: the candidates and labels of all ranks are gathered in rank order, and
            indices (in `positives` and `excluded`) refer to the gathered candidates. Every rank must call this with the
            same C, dtype and options; M and N may differ. The mean of the results over ranks, and so of the gradients,
            which `DistributedDataParallel` computes, is the result for the whole batch in one process. None is the
            current process only. Synchronizes to exchange sizes, causes a graph break in `torch.compile`, and supports
            neither `torch.func` transforms nor forward-mode differentiation.
        backend: "triton", "torch", "reference", or None to choose automatically.

    Returns:
        The loss, a scalar in float32 (float64 for float64). Under autocast, anchors and candidates are first cast to
        the autocast dtype, as for a matrix product; sums are in float32.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value, ranks whose arguments disagree, or a backend that
            does not support these tensors.

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
    _check_temperature(temperature, anchors)
    check_flag(_NAME, "symmetric", symmetric)
    if excluded is not None:
        check_ids(_NAME, "excluded", excluded, "[M]", (anchors.shape[0],), anchors.device)
    if group is not None:
        # Imported here because torch.compiler.disable imports the compiler, which is slow.
        from art_kernels.tracklet_nce import gather

        gather.check_group(group)

    anchors, candidates = autocast_as_matmul(anchors), autocast_as_matmul(candidates)
    check_same_dtype(_NAME, "candidates", candidates, "anchors", anchors)
    dtype = accumulation_dtype(anchors.dtype)
    if isinstance(temperature, Tensor):
        temperature = torch.where(temperature > 0, temperature, torch.nan).to(dtype)
    else:
        temperature = torch.full((), temperature, dtype=dtype, device=anchors.device)

    run = backends.implementation(_NAME, anchors, backend)
    with without_autocast(anchors.device):
        if group is not None:
            return gather.distributed_loss(run, anchors, candidates, positives, excluded, temperature, symmetric, group)
        ids = pair_ids(positives, candidates.shape[0])
        rows, columns = run(anchors, candidates, *ids, excluded, temperature, symmetric)
        return (mean_loss(rows) + mean_loss(columns)) / 2 if symmetric else mean_loss(rows)


def _check_positives(positives: object, anchors: Tensor, candidates: Tensor) -> None:
    rows, count, device = anchors.shape[0], candidates.shape[0], anchors.device
    if isinstance(positives, Tensor):
        check_ids(_NAME, "positives", positives, "[M]", (rows,), device)
    elif isinstance(positives, tuple | list) and len(positives) == 2:
        check_ids(_NAME, "positives[0]", positives[0], "[M]", (rows,), device)
        check_ids(_NAME, "positives[1]", positives[1], "[N]", (count,), device)
    else:
        raise TypeError(
            f"{_NAME}: positives is of type {type(positives).__name__}, expected an int64 torch.Tensor of shape [M] "
            "(the index of each anchor's positive, -1 for none) or a pair of int64 tensors [M] and [N] (labels)"
        )


def _check_temperature(temperature: object, anchors: Tensor) -> None:
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
    check_same_device(_NAME, "temperature", temperature, "anchors", anchors)


def positive_rule(function: object) -> NoReturn:
    """Removed; raises NotImplementedError. Pass labels or indices to `tracklet_nce` instead."""
    if not callable(function):
        raise TypeError(
            f"positive_rule: function is {describe(function)}, expected a function; positive_rule was removed"
        )
    raise NotImplementedError(
        "positive_rule was removed: pass tracklet_nce a pair of int64 labels [M] and [N], which are positive if equal, "
        "or the index [M] of each anchor's positive, and exclude pairs with `excluded`"
    )


#: Each anchor is compared with all candidates of one batch, so vmap computes the loss of each batch.
SPEC = OperatorSpec(
    name=_NAME,
    arguments=Arguments,
    outputs=("rows", "columns"),
    vmap=loop_over_samples,
    differentiable=("anchors", "candidates", "temperature"),
    grad_outputs=("rows", "columns"),
    reference=reference.tracklet_nce,
)
register_backend(SPEC, "triton", "art_kernels.tracklet_nce.triton")
register_backend(SPEC, "torch", "art_kernels.tracklet_nce.torch")
backends.register(_NAME, "reference", reference.tracklet_nce)
