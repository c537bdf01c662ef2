"""Distributed training compared with a single process. Processes are started once, see ranks_program.py."""

import os
import socket
import time

import pytest
import ranks_program
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks_program import EXACT
from torch.testing import assert_close

from art.eval.evaluate import evaluate_checkpoint
from art.model.loading import load_model
from art.train import distributed
from art.train.checkpoint import load_training_state, read_history
from art.train.config import ConfigError, load_config, save_config
from art.train.distributed import DistContext, OtherRankError, init_distributed
from art.train.loop import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(configured, tmp_path_factory):
    """The overrides of a small run, without its output."""
    overrides = configured.small(tmp_path_factory.mktemp("unused"))
    return [override for override in overrides if not override.startswith("output=")]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small):
    """Directory with the runs of the ranks."""
    directory = tmp_path_factory.mktemp("ranks")
    mp.spawn(ranks_program.run, (str(directory), small), nprocs=4)
    return directory


@pytest.fixture(scope="module")
def results(runs):
    """The results of each rank."""
    return [torch.load(runs / f"{rank}.pt", weights_only=False) for rank in range(4)]


@pytest.fixture(scope="module")
def single(runs, small):
    """The run of a single process."""
    train(load_config(None, [*small, f"output={runs / 'single'}", *EXACT]))
    return runs / "single"


def assert_same_losses(recorded, first, second):
    one, other = (
        [{k: v for k, v in line.items() if k.startswith("loss/")} for line in recorded(run, "step")]
        for run in (first, second)
    )
    assert len(one) == len(other) == 50
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
    total = [line["loss/total"] for line in one]
    assert sum(total[-4:]) < 0.8 * sum(total[:4])  # the loss decreases


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_ranks_have_the_losses_of_one_process(runs, single, recorded, name):
    assert_same_losses(recorded, runs / name, single)
    one, other = (recorded(run, "epoch") for run in (runs / name, single))
    assert [line["top1/train"] for line in one] == [line["top1/train"] for line in other]
    assert one[-1]["top1/test"] == other[-1]["top1/test"]


@pytest.mark.slow
def test_ddp_weights_and_bank_are_bitwise_equal_on_all_ranks(results, runs):
    first, second = (results[rank]["weights"] for rank in (0, 1))
    assert {"semantics.bank", "semantics.agent"} <= first.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = load_model(runs / "ddp" / "checkpoints" / "last").state_dict()
    assert all(torch.equal(first[name], saved[name]) for name in first)


@pytest.mark.slow
def test_fsdp_shards_parameters_and_saves_full_weights(results, runs):
    saved = load_model(runs / "fsdp" / "checkpoints" / "last").state_dict()
    assert torch.equal(results[0]["bank"], results[1]["bank"])
    assert torch.equal(results[0]["bank"], saved["semantics.bank"])
    assert torch.equal(results[0]["agent"], saved["semantics.agent"])
    for name, (full, local) in results[0]["sharded"].items():
        assert saved[name].shape == full
        assert full[0] == local[0] + results[1]["sharded"][name][1][0]
    written = {path.name for path in (runs / "fsdp" / "checkpoints" / "last" / "training_state").glob("*.distcp")}
    assert written == {"__0_0.distcp", "__1_0.distcp"}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 1])
def test_run_of_four_sharded_ranks_resumes_with_fewer(runs, results, single, recorded, small, world_size):
    assert {results[rank]["four"][0] for rank in range(4)} == {"Interrupted"}
    assert "stopped by signal 15 after step 11, 1 of 2 batches into epoch 6" in results[0]["four"][1]
    if world_size == 1:
        train(load_config(None, [*small, f"output={runs / 'four-to-one'}", *EXACT]), resume=True)
    assert_same_losses(recorded, runs / ("four" if world_size == 2 else "four-to-one"), single)


@pytest.mark.slow
def test_stopped_ranks_resume_bit_for_bit_with_dropout_and_asynchronous_checkpoints(runs, results, assert_same_run):
    for rank in (0, 1):
        kind, message = results[rank]["stopped"]
        assert kind == "Interrupted"
        assert "stopped by signal 2 after step 3, 1 of 2 batches into epoch 2" in message
    assert_same_run(runs / "stopped", runs / "unbroken")
    for name in ("stopped", "unbroken"):
        kept = runs / name / "checkpoints"
        assert {path.name for path in kept.iterdir()} == {"last", "best", "step-00000005"}
        assert load_training_state(kept / "step-00000005")["position"]["step"] == 5


@pytest.mark.slow
def test_non_finite_loss_on_one_rank_stops_all_and_names_its_clips(results):
    (kind, message), other = results[0]["nan"], results[1]["nan"]
    assert kind == "NonFiniteLoss"
    assert (kind, message) == other
    assert "loss/total is nan" in message and "at step 2 (epoch 1)" in message
    assert message.count(".mp4") == 2


@pytest.mark.slow
def test_error_on_one_rank_ends_all_with_its_message(results):
    assert results[1]["unreadable"] == ("LookupError", "this clip is missing")
    assert results[0]["unreadable"] == ("OtherRankError", "rank 1 failed with LookupError: this clip is missing")
    assert results[0]["exists"][0] == "RunExists"
    assert results[1]["exists"][0] == "OtherRankError"
    assert "already contains a run" in results[1]["exists"][1]
    for rank in (0, 1):
        assert "a step has 3 clips for 2 ranks" in results[rank]["three"][1]


@pytest.mark.slow
def test_every_clip_is_evaluated_once_as_in_one_process(runs, results):
    one = evaluate_checkpoint(runs / "evaluated", split="train")
    for rank in (0, 1):
        evaluation = results[rank]["evaluated"]
        assert evaluation.indices.tolist() == list(range(9)) == one.indices.tolist()
        assert evaluation.labels.tolist() == one.labels.tolist()
        assert_close(*map(torch.from_numpy, (evaluation.probabilities, one.probabilities)))
        assert (evaluation.order == one.order).all()


@pytest.mark.slow
def test_sync_batch_norm_matches_one_process(results):
    for rank in (0, 1):
        expected, synced = results[rank]["batch_norm"]
        assert len(expected) == len(synced) == 13
        for a, b in zip(expected, synced, strict=True):
            assert_close(b, a)
        full, local = results[rank]["bfloat16"]
        assert local.dtype == torch.bfloat16
        assert_close(local, full[:5] if rank == 0 else full[5:])


OPTIONS = [
    "kind=art",
    "model.backbone=uniformerv2_b16",  # no batch norm
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
FSDP = ["parallel.strategy=fsdp", "parallel.fsdp_block=1000"]


def run_options(rank, agent_port, paths):
    """Trains on one of two ranks: first with the store of an agent, as torchrun sets it, then with one of rank 0."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(agent_port), TORCHELASTIC_USE_AGENT_STORE="True")
    train(load_config(paths[0]))
    agent_store = dist.TCPStore("localhost", agent_port, is_master=False)
    if rank == 0:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = str(probe.getsockname()[1])
        agent_store.set("port", port)  # free a moment ago, and bound again at once
    del os.environ["TORCHELASTIC_USE_AGENT_STORE"]
    os.environ["MASTER_PORT"] = agent_store.get("port").decode()
    train(load_config(paths[1]))


@pytest.fixture(scope="module")
def option_runs(configured, tmp_path_factory):
    """A run of one process, and two of two ranks with two microbatches each."""
    directory = tmp_path_factory.mktemp("options")
    paths = []
    for name, overrides in (("ddp", []), ("fsdp", FSDP)):
        save_config(
            configured(directory / name, *OPTIONS, *overrides, "optim.accumulate=2"), directory / f"{name}.yaml"
        )
        paths.append(directory / f"{name}.yaml")
    train(configured(directory / "single", *OPTIONS))
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    mp.spawn(run_options, (store.port, paths), nprocs=2)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_options_on_two_ranks_match_one_process(option_runs, name):
    one, other = (
        [line for line in read_history(option_runs / run / "metrics.jsonl") if line["event"] == "step"]
        for run in (name, "single")
    )
    assert len(one) == len(other) == 4
    compared = ("loss/", "lr/", "gradient_norm/", "similarity_between_classes/")
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        assert {k: v for k, v in a.items() if k.startswith(compared)} == pytest.approx(
            {k: v for k, v in b.items() if k.startswith(compared)}, rel=1e-5, abs=1e-5
        )
    assert "similarity_own_class/p50" in one[1]
    weights, expected = (
        load_model(option_runs / run / "checkpoints" / "last").state_dict() for run in (name, "single")
    )
    assert_close(weights, expected, rtol=1e-5, atol=1e-5)
    traces = sorted(path.name for path in (option_runs / name / "trace").iterdir())
    assert traces == ["steps-2-2-rank-0.json.gz", "steps-2-2-rank-1.json.gz"]


def test_context_of_a_single_process(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with init_distributed("cpu", 60.0) as dist_ctx:
        assert dist_ctx == DistContext(CPU)
        assert dist_ctx.is_main and not dist_ctx.is_distributed
        assert dist_ctx.gather_objects("mine") == ["mine"]
        assert dist_ctx.run_on_rank0(lambda: 5) == 5
        with pytest.raises(LookupError), dist_ctx.sync_errors():
            raise LookupError


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_ranks_cannot_share_one_device(monkeypatch, device):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)  # the error is raised before connecting
    with (
        pytest.raises(ConfigError, match=rf"device: got '{device}' for several ranks, expected auto, cuda or cpu"),
        init_distributed(device, 60.0),
    ):
        pass


def test_workers_are_limited_by_the_cores_of_a_rank(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8), raising=False)
    assert DistContext(CPU).num_workers(20) == 20
    assert DistContext(CPU, 0, 4, local_world_size=2).num_workers(20) == 4
    assert DistContext(CPU, 0, 4, local_world_size=2).num_workers(3) == 3
    assert DistContext(CPU, 0, 16, local_world_size=16).num_workers(3) == 1
    assert DistContext(CPU, 0, 16, local_world_size=16).num_workers(0) == 0


TIMED_OUT = RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 10000ms for recv operation")
CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")


class SilentStore:
    """A store on a machine that has stopped."""

    def set(self, *_):
        time.sleep(5)


@pytest.mark.slow
def test_failures_of_other_ranks_are_explained(monkeypatch):
    monkeypatch.setattr(distributed, "_FAILURE_TIMEOUT", 0.2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")

    def explain(error, *waiting, store=None, cause=None):
        store = store or dist.HashStore()
        for rank in waiting:
            store.set(f"{distributed._FAILURE_KEY}/{rank}", "")
        if cause is not None:
            store.set(distributed._FAILURE_KEY, cause)
        return store, distributed._explain_failure(store, error, 10.0)

    _, error = explain(TIMED_OUT, 2)
    assert isinstance(error, OtherRankError)
    assert "rank 1 did not respond within parallel.timeout (10 s)" in str(error)
    assert "ranks 1, 2 did not respond" in str(explain(TIMED_OUT)[1])
    assert "another rank did not respond" in str(explain(TIMED_OUT, 1, 2)[1])
    assert "rank 0 did not respond" in str(explain(TIMED_OUT, store=SilentStore())[1])
    assert "another rank ended without an error message" in str(explain(CLOSED, 1, 2)[1])
    for consequence in (TIMED_OUT, CLOSED):
        assert str(explain(consequence, 1, 2, cause="rank 2 failed with E: e")[1]) == "rank 2 failed with E: e"
    store, error = explain(LookupError("this clip"), 1, 2)
    assert isinstance(error, LookupError)  # a rank reports its own error, and the others report it too
    assert store.get(distributed._FAILURE_KEY) == b"rank 0 failed with LookupError: this clip"


def train_with_a_hung_rank(rank, port, config, results):
    """Trains on one of two ranks; rank 1 hangs in its second step."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
    with ranks_program.in_step(2, lambda _: rank == 1 and time.sleep(120)):
        try:
            train(load_config(config))
        except Exception as error:
            results.put(f"{type(error).__name__}: {error}")


@pytest.mark.slow
def test_hung_rank_ends_the_other_one_in_time(configured, tmp_path):
    save_config(configured(tmp_path / "run", "parallel.timeout=4"), tmp_path / "run.yaml")
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.Queue()
    arguments = (port, tmp_path / "run.yaml", results)
    ranks = [context.Process(target=train_with_a_hung_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    try:
        message = results.get(timeout=90)
        assert message.startswith("OtherRankError: rank 1 did not respond within parallel.timeout (4 s)")
        ranks[0].join(10)
        assert ranks[0].exitcode == 0
    finally:
        for process in ranks:
            process.kill()
            process.join()
