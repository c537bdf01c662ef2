"""Options of a training on two ranks, against one process: accumulation, averages, norms, histograms."""

import os
import socket

import pytest
import torch.multiprocessing as mp
from torch.testing import assert_close

from art.model.pretrained import load_model
from art.train.config import load_config, save_config
from art.train.loop import train
from art.train.run_dir import read_history

OPTIONS = [
    "kind=art",
    "model.backbone=uniformerv2_b16",  # without batch normalisation
    "model.backbone_options={}",
    "model.backbone_options={width: 24, layers: 2, heads: 2, patch_size: 8, input_size: 24, global_dropout: 0}",
    "model.dropout=0",
    "optim.clip_grad_norm=1",
    "optim.layer_decay=0.7",
    "optim.ema=0.8",
    "log.histograms_every=2",
    "log.profile=[2, 2]",
    "optim.epochs=2",
]
PARTS = ["optim.accumulate=2"]
FSDP = ["parallel.strategy=fsdp", "parallel.fsdp_block=1000"]


def run(rank, port, paths):
    """What each of the two processes does."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="localhost"
    )
    for number, path in enumerate(paths):
        os.environ["MASTER_PORT"] = str(port[number])
        train(load_config(path))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def folder(configured, tmp_path_factory):
    """A run of one process, and two of two ranks in parts."""
    folder = tmp_path_factory.mktemp("options")
    paths = []
    for name, given in (("ddp", PARTS), ("fsdp", [*PARTS, *FSDP])):
        save_config(configured(folder / name, *OPTIONS, *given), folder / f"{name}.yaml")
        paths.append(folder / f"{name}.yaml")
    train(configured(folder / "alone", *OPTIONS))
    mp.spawn(run, (free_ports(2), paths), nprocs=2)
    return folder


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_in_two_parts_each_take_the_steps_of_one_process(folder, name):
    one, other = (
        [line for line in read_history(folder / run / "metrics.jsonl") if line["event"] == "step"]
        for run in (name, "alone")
    )
    assert len(one) == len(other) == 4
    compared = ("loss/", "lr/", "gradient_norm/", "similarity_between_classes/")
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert {k: v for k, v in a.items() if k.startswith(compared)} == pytest.approx(
            {k: v for k, v in b.items() if k.startswith(compared)}, rel=1e-5, abs=1e-5
        )
    assert "similarity_own_class/p50" in one[1]
    averages, expected = (load_model(folder / run / "checkpoints" / "last").state_dict() for run in (name, "alone"))
    assert_close(averages, expected, rtol=1e-5, atol=1e-5)


def test_every_rank_leaves_its_trace(folder):
    for name in ("ddp", "fsdp"):
        names = sorted(path.name for path in (folder / name / "trace").iterdir())
        assert names == ["steps-2-2-rank-0.json.gz", "steps-2-2-rank-1.json.gz"]
