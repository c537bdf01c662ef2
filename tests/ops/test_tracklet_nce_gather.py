"""`tracklet_nce` across two processes vs. the whole batch in one: values, gradients, and errors without deadlocks."""

import datetime
import itertools
import re

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from art_kernels import tracklet_nce

RANKS = 2


def batch(counts: tuple[int, int], rows: tuple[int, int]):
    """Anchors, candidates and ids of the whole batch in float64, identical in every process."""
    generator = torch.Generator().manual_seed(5)
    anchors = torch.randn(sum(rows), 6, dtype=torch.float64, generator=generator)
    candidates = torch.randn(sum(counts), 6, dtype=torch.float64, generator=generator)
    labels = (torch.randint(4, (size,), generator=generator) for size in (sum(rows), sum(counts)))
    index, excluded = (torch.randint(-1, sum(counts), (sum(rows),), generator=generator) for _ in range(2))
    return anchors, candidates, tuple(labels), index, excluded


def part_of(tensors, counts, rows, rank):
    """Return the tensors of `batch` that belong to a process, or all of them if `rank` is None."""
    if rank is None:
        return tensors
    anchors, candidates, labels, index, excluded = tensors
    anchors, anchor_labels, index, excluded = (
        tensor.split(rows)[rank].clone() for tensor in (anchors, labels[0], index, excluded)
    )
    return (
        anchors,
        candidates.split(counts)[rank].clone(),
        (anchor_labels, labels[1].split(counts)[rank]),
        index,
        excluded,
    )


#: Numbers of candidates and of anchors per process.
SIZES = {"equal": ((5, 5), (5, 5)), "unequal": ((3, 7), (6, 2)), "one has none": ((0, 7), (4, 0))}


def cases():
    return list(itertools.product(SIZES.values(), ("index", "labels"), (False, True), (False, True)))


def result(case, rank=None) -> list[Tensor]:
    """Loss and gradients of the part of the batch in one process, or of the whole batch if `rank` is None."""
    (counts, rows), form, symmetric, excluding = case
    anchors, candidates, labels, index, excluded = part_of(batch(counts, rows), counts, rows, rank)
    leaves = [anchors.requires_grad_(), candidates.requires_grad_(), torch.tensor(0.5).double().requires_grad_()]
    loss = tracklet_nce(
        *leaves[:2], index if form == "index" else labels, temperature=leaves[2], symmetric=symmetric,
        excluded=excluded if excluding else None, group=None if rank is None else dist.group.WORLD,
    )  # fmt: skip
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def message_of(call) -> str:
    try:
        call()
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def disagreements(rank: int) -> list[str]:
    ones, index = torch.ones(2, 3), torch.arange(2)
    options = {"temperature": 1.0, "group": dist.group.WORLD}
    return [
        message_of(lambda: tracklet_nce(ones[:, : 2 + rank], ones[:, : 2 + rank], index, **options)),
        message_of(lambda: tracklet_nce(*[ones.to([torch.float32, torch.float16][rank])] * 2, index, **options)),
        message_of(lambda: tracklet_nce(ones, ones, index if rank else (index, index), **options)),
        message_of(lambda: tracklet_nce(ones, ones, index, symmetric=rank == 1, **options)),
    ]


def second_order(rank=None) -> Tensor:
    """The gradient of the squared gradients with respect to the candidates, as in `result`."""
    counts, rows = SIZES["unequal"]
    anchors, candidates, labels, _, _ = part_of(batch(counts, rows), counts, rows, rank)
    leaves, group = [anchors.requires_grad_(), candidates.requires_grad_()], None if rank is None else dist.group.WORLD
    loss = tracklet_nce(*leaves, labels, temperature=0.5, symmetric=True, group=group)
    loss = RANKS * loss if rank is None else loss
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), candidates)[0]


@pytest.mark.slow
def test_second_order_gradients(found):
    torch.testing.assert_close(torch.cat([second for _, second, _ in found]), second_order())


def process(rank: int, directory: str) -> None:
    timeout = datetime.timedelta(seconds=30)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=RANKS, timeout=timeout
    )
    results = [result(case, rank) for case in cases()]
    torch.save((results, second_order(rank), disagreements(rank)), f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Per process: losses and gradients of all cases, a second-order gradient, and error messages."""
    directory = tmp_path_factory.mktemp("processes")
    mp.spawn(process, (str(directory),), nprocs=RANKS)
    return [torch.load(directory / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.slow
def test_mean_over_processes_is_the_loss_of_the_whole_batch(found):
    for number, case in enumerate(cases()):
        loss, *of_parts, of_temperature = zip(*(results[number] for results, _, _ in found), strict=True)
        mine = [
            torch.stack(loss).mean(),
            *(torch.cat(parts) / RANKS for parts in of_parts),
            torch.stack(of_temperature).mean(),
        ]
        torch.testing.assert_close(mine, result(case), msg=lambda message, case=case: f"{case}: {message}")


@pytest.mark.slow
def test_disagreement_raises_on_every_process(found):
    expected = [
        "the number of channels: [2, 3] by rank",
        "dtype: [torch.float32, torch.float16] by rank",
        "the form of positives (1: indices, 0: labels): [0, 1] by rank",
        "symmetric: [0, 1] by rank",
    ]
    for _, _, messages in found:
        for message, part in zip(messages, expected, strict=True):
            assert re.match(re.escape(f"tracklet_nce: the processes of group disagree about {part}"), message)


def test_group_of_one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        anchors, candidates, labels, _, _ = batch((9, 0), (9, 0))
        call = {"temperature": 0.5, "symmetric": True}
        alone = tracklet_nce(anchors, candidates, labels, **call)
        torch.testing.assert_close(tracklet_nce(anchors, candidates, labels, group=dist.group.WORLD, **call), alone)
        with pytest.raises(Exception, match="waits for the sizes of all processes"):
            torch.compile(tracklet_nce, fullgraph=True, backend="eager")(
                anchors, candidates, labels, group=dist.group.WORLD, **call
            )
    finally:
        dist.destroy_process_group()
