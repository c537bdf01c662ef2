"""Trainings on several ranks against the same in this process. The ranks are started once: see ranks_program.py."""

import pytest
import ranks_program
import torch
import torch.multiprocessing as mp
from ranks_program import EXACT

from art.eval.evaluate import evaluate_checkpoint
from art.model.pretrained import load_model
from art.train.checkpoint import load_training_state
from art.train.config import ConfigError, load_config
from art.train.distributed import Ranks, joined
from art.train.loop import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(configured, tmp_path_factory):
    """The overrides that make a small run."""
    values = configured.small(tmp_path_factory.mktemp("unused"))
    return [value for value in values if not value.startswith("output=")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small):
    """Where the ranks have left their runs."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(ranks_program.run, (str(folder), small), nprocs=4)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each rank has found."""
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(4)]


@pytest.fixture(scope="module")
def alone(folder, small):
    """The run of one process."""
    train(load_config(None, [*small, f"output={folder / 'alone'}", *EXACT]))
    return folder / "alone"


def losses(recorded, folder):
    return [{k: v for k, v in line.items() if k.startswith("loss/")} for line in recorded(folder, "step")]


def assert_same_losses(recorded, first, second):
    one, other = losses(recorded, first), losses(recorded, second)
    assert len(one) == len(other) == 50
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    assert sum(line["loss/total"] for line in one[-4:]) < 0.8 * sum(line["loss/total"] for line in one[:4]), "it learns"


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_have_the_losses_of_one_over_fifty_steps(folder, alone, recorded, name):
    assert_same_losses(recorded, folder / name, alone)
    one, other = (recorded(run, "epoch") for run in (folder / name, alone))
    assert [line["top1/train"] for line in one] == [line["top1/train"] for line in other]
    assert one[-1]["top1/test"] == other[-1]["top1/test"]


def test_weights_bank_and_agent_are_the_same_on_every_rank_bit_for_bit(found, folder):
    first, second = (found[rank]["weights"] for rank in (0, 1))
    assert {"semantics.bank", "semantics.agent"} <= first.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = load_model(folder / "ddp" / "checkpoints" / "last").state_dict()
    assert all(torch.equal(first[name], saved[name]) for name in first)


def test_sharded_every_rank_has_a_part_and_what_is_saved_is_whole(found, folder):
    saved = load_model(folder / "fsdp" / "checkpoints" / "last").state_dict()
    assert torch.equal(found[0]["bank"], found[1]["bank"])
    assert torch.equal(found[0]["bank"], saved["semantics.bank"])
    assert torch.equal(found[0]["learned"], saved["semantics.agent"])
    for name, (whole, own) in found[0]["sharded"].items():
        assert saved[name].shape == whole
        assert whole[0] == own[0] + found[1]["sharded"][name][1][0]
    written = {path.name for path in (folder / "fsdp" / "checkpoints" / "last" / "training_state").glob("*.distcp")}
    assert written == {"__0_0.distcp", "__1_0.distcp"}


@pytest.mark.parametrize("to", ["two", "one"])
def test_four_sharded_ranks_are_continued_by_fewer(folder, found, alone, recorded, small, to):
    kinds = {found[rank]["four"][0] for rank in range(4)}
    assert kinds == {"Interrupted"}
    assert "stopped by signal 15 after step 11, 1 of 2 batches into epoch 6" in found[0]["four"][1]
    if to == "one":
        train(load_config(None, [*small, f"output={folder / 'four-to-one'}", *EXACT]), resume=True)
    assert_same_losses(recorded, folder / ("four" if to == "two" else "four-to-one"), alone)


def test_ranks_that_were_stopped_go_on_bit_for_bit_with_dropout_and_in_the_background(folder, found, assert_same_run):
    for rank in (0, 1):
        kind, told = found[rank]["stopped"]
        assert kind == "Interrupted"
        assert "stopped by signal 2 after step 3, 1 of 2 batches into epoch 2" in told
    assert_same_run(folder / "stopped", folder / "unbroken")
    for name in ("stopped", "unbroken"):
        kept = folder / name / "checkpoints"
        assert {path.name for path in kept.iterdir()} == {"last", "best", "step-00000005"}
        assert load_training_state(kept / "step-00000005")["position"]["step"] == 5


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_names_its_clips(found):
    (kind, told), other = found[0]["nan"], found[1]["nan"]
    assert kind == "NonFiniteLoss"
    assert (kind, told) == other
    assert "loss/total is nan" in told and "at step 2 (epoch 1)" in told
    assert told.count(".mp4") == 2


def test_an_error_on_one_rank_ends_all_with_its_message_and_at_once(found):
    assert found[1]["unreadable"] == ("LookupError", "this clip is gone")
    assert found[0]["unreadable"] == ("OtherRankError", "rank 1 ended with LookupError: this clip is gone")
    assert found[0]["seconds"] < 30
    assert found[0]["exists"][0] == "RunExists"
    assert found[1]["exists"][0] == "OtherRankError"
    assert "already holds a run" in found[1]["exists"][1]
    for rank in (0, 1):
        assert "a step has 3 clips for 2 ranks" in found[rank]["three"][1]


def test_every_clip_is_evaluated_once_and_as_one_process_does(folder, found):
    one = evaluate_checkpoint(folder / "evaluated", split="train")
    for rank in (0, 1):
        several = found[rank]["evaluated"]
        assert several.indices.tolist() == list(range(9)) == one.indices.tolist()
        assert several.labels.tolist() == one.labels.tolist()
        torch.testing.assert_close(*map(torch.from_numpy, (several.probabilities, one.probabilities)))
        assert (several.order == one.order).all()


def test_batch_normalisation_over_ranks_is_that_of_all_clips(found):
    for rank in (0, 1):
        alone, synced = found[rank]["batch_norm"]
        assert len(alone) == len(synced) == 13
        for a, b in zip(alone, synced, strict=True):
            torch.testing.assert_close(b, a)
        whole, own = found[rank]["bfloat16"]
        assert own.dtype == torch.bfloat16
        torch.testing.assert_close(own, whole[:5] if rank == 0 else whole[5:])


def test_a_process_alone_joins_nobody(configured, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined(configured(tmp_path)) as ranks:
        assert ranks == Ranks(CPU)
        assert ranks.is_main and not ranks.several
        assert ranks.gather_objects("mine") == ["mine"]
        assert ranks.on_main(lambda: 5) == 5
        with pytest.raises(LookupError), ranks.together():
            raise LookupError


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_several_ranks_share_no_named_device(configured, tmp_path, monkeypatch, device):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ConfigError, match=rf"device: got '{device}' for several ranks, expected auto, cuda or cpu"),
        joined(configured(tmp_path, f"device={device}")),
    ):
        pass


def test_workers_are_no_more_than_a_rank_has_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    assert Ranks(CPU).workers(20) == 20
    assert Ranks(CPU, 0, 4, local_world_size=2).workers(20) == 4
    assert Ranks(CPU, 0, 4, local_world_size=2).workers(3) == 3
    assert Ranks(CPU, 0, 16, local_world_size=16).workers(3) == 1
    assert Ranks(CPU, 0, 16, local_world_size=16).workers(0) == 0
