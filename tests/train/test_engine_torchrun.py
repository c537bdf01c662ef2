"""The command under torchrun: two nodes that find each other on this machine, a rank that is killed, a signal."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from art.train.checkpoint import load_training_state
from art.train.config import save_config
from art.train.run_dir import RunFolder

SECONDS = 120


def torchrun(config, port, *options):
    """One of two nodes with one rank each."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", "--local-addr=127.0.0.1", "--monitor-interval=0.1",
        "--rdzv-conf=last_call_timeout=1", *options, "-m", "art", "train", str(config), "--auto-resume",
    ]  # fmt: skip
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def children(process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_until(true, *processes):
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), [p.communicate()[0] for p in processes]
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks in /proc")
def test_two_nodes_train_lose_a_rank_go_on_and_stop_when_asked(configured, recorded, tmp_path):
    run = RunFolder(tmp_path / "run")
    endless = configured(run.path, "optim.epochs=5000", "checkpoints.every_steps=1", "eval_every=5000")
    save_config(endless, tmp_path / "run.yaml")
    port = free_port()
    nodes = [torchrun(tmp_path / "run.yaml", port, "--max-restarts=3") for _ in range(2)]
    try:
        wait_until(lambda: len(recorded(run.path, "step")) >= 3, *nodes)
        former = children(nodes[1])
        os.kill(former[0], signal.SIGKILL)
        reached = load_training_state(run.last)["position"]["step"]
        wait_until(lambda: children(nodes[1]) not in ([], former), *nodes)
        wait_until(lambda: len(recorded(run.path, "step")) >= reached + 4, *nodes)
        steps = [line["step"] for line in recorded(run.path, "step")]
        assert steps == list(range(1, len(steps) + 1)), "none is missing, and none is there twice"
        nodes[1].terminate()  # one node alone, as when it is taken away
        told = nodes[1].communicate(timeout=SECONDS)[0]
        nodes[0].terminate()  # which waits for another
        told += nodes[0].communicate(timeout=SECONDS)[0]
    finally:
        for node in nodes:
            for rank in children(node) if node.poll() is None else []:
                os.kill(rank, signal.SIGKILL)
            node.kill()
    assert "(exitcode: -9) local_rank: 0" in told
    assert "art: stopped by signal 15 after step" in told
    assert "(exitcode: 143) local_rank: 0" in told
    assert load_training_state(run.last)["position"]["step"] == len(recorded(run.path, "step"))
