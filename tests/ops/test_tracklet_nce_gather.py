"""`tracklet_nce` across two processes vs. the whole batch in one: values, gradients, and errors without deadlocks."""

import datetime
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


def loss_of(anchors, candidates, labels, index, excluded, form, temperature, symmetric, group=None):
    positives = index if form == "index" else labels
    return tracklet_nce(
        anchors, candidates, positives, temperature=temperature, symmetric=symmetric, excluded=excluded, group=group
    )


#: Numbers of candidates and of anchors per process.
SIZES = {"equal": ((5, 5), (5, 5)), "unequal": ((3, 7), (6, 2)), "one has none": ((0, 7), (4, 0))}


def cases():
    for sizes in SIZES.values():
        for form in ("index", "labels"):
            for symmetric in (False, True):
                for excluding in (False, True):
                    yield sizes, form, symmetric, excluding


def in_one_process(case) -> list[Tensor]:
    (counts, rows), form, symmetric, excluding = case
    anchors, candidates, labels, index, excluded = batch(counts, rows)
    leaves = [anchors.requires_grad_(), candidates.requires_grad_(), torch.tensor(0.5).double().requires_grad_()]
    loss = loss_of(*leaves[:2], labels, index, excluded if excluding else None, form, leaves[2], symmetric)
    return [loss, *torch.autograd.grad(loss, leaves)]


def local_result(case, rank: int) -> list[Tensor]:
    """Loss and local gradients of one process."""
    (counts, rows), form, symmetric, excluding = case
    anchors, candidates, labels, index, excluded = batch(counts, rows)
    own_anchors = anchors.split(rows)[rank].clone().requires_grad_()
    own_candidates = candidates.split(counts)[rank].clone().requires_grad_()
    own_labels = labels[0].split(rows)[rank], labels[1].split(counts)[rank]
    temperature = torch.tensor(0.5).double().requires_grad_()
    without = excluded.split(rows)[rank] if excluding else None
    loss = loss_of(
        own_anchors, own_candidates, own_labels, index.split(rows)[rank], without, form, temperature, symmetric,
        dist.group.WORLD,
    )  # fmt: skip
    return [loss.detach(), *torch.autograd.grad(loss, (own_anchors, own_candidates, temperature))]


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


def second_order(rank: int) -> Tensor:
    """The gradient of the squared local gradients with respect to the local candidates."""
    anchors, candidates, labels, _, _ = batch(*SIZES["unequal"])
    rows = anchors.split(SIZES["unequal"][1])[rank].clone().requires_grad_()
    others = candidates.split(SIZES["unequal"][0])[rank].clone().requires_grad_()
    own_labels = labels[0].split(SIZES["unequal"][1])[rank], labels[1].split(SIZES["unequal"][0])[rank]
    loss = tracklet_nce(rows, others, own_labels, temperature=0.5, symmetric=True, group=dist.group.WORLD)
    first = torch.autograd.grad(loss, (rows, others), create_graph=True)
    return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), others)[0]


def process(rank: int, directory: str) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",
        rank=rank,
        world_size=RANKS,
        timeout=datetime.timedelta(seconds=30),
    )
    results = [local_result(case, rank) for case in cases()]
    torch.save((results, second_order(rank), disagreements(rank)), f"{directory}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Per process: losses and gradients of all cases, a second-order gradient, and error messages."""
    directory = tmp_path_factory.mktemp("processes")
    mp.spawn(process, (str(directory),), nprocs=RANKS)
    return [torch.load(directory / f"{rank}.pt") for rank in range(RANKS)]


def test_mean_over_processes_is_the_loss_of_the_whole_batch(found):
    for number, case in enumerate(cases()):
        loss, *of_parts, of_temperature = zip(*(results[number] for results, _, _ in found), strict=True)
        mine = [
            torch.stack(loss).mean(),
            *(torch.cat(parts) / RANKS for parts in of_parts),
            torch.stack(of_temperature).mean(),
        ]
        torch.testing.assert_close(mine, in_one_process(case), msg=lambda message, case=case: f"{case}: {message}")


def test_second_order_gradients(found):
    anchors, candidates, labels, _, _ = batch(*SIZES["unequal"])
    leaves = [anchors.requires_grad_(), candidates.requires_grad_()]
    loss = RANKS * tracklet_nce(*leaves, labels, temperature=0.5, symmetric=True)
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    (expected,) = torch.autograd.grad(sum(gradient.square().sum() for gradient in first), candidates)
    torch.testing.assert_close(torch.cat([second for _, second, _ in found]), expected)


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
