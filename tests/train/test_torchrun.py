"""The command under torchrun: two nodes on this machine, a killed rank, and a signal to one node."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from art.train.checkpoint import RunDir, load_training_state
from art.train.config import save_config

TIMEOUT = 240  # seconds, for a loaded machine


class Node:
    """One of two torchrun agents with one rank each, which rendezvous at a store of this process."""

    def __init__(self, config: Path, port: int) -> None:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test", "--local-addr=127.0.0.1", "--monitor-interval=0.1",
            "--rdzv-conf=last_call_timeout=1,is_host=0", "--max-restarts=3", "-m", "art", "train", str(config),
            "--auto-resume",
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)

    def ranks(self) -> list[int]:
        """Returns the process ids of the ranks."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(condition, *nodes):
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        assert all(node.process.poll() is None for node in nodes), [node.process.communicate()[0] for node in nodes]
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks in /proc")
def test_two_nodes_survive_a_killed_rank_and_stop_on_a_signal(configured, recorded, tmp_path):
    run = RunDir(tmp_path / "run")
    endless = configured(run.path, "optim.epochs=5000", "checkpoints.every_steps=1", "eval_every=5000")
    save_config(endless, tmp_path / "run.yaml")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    nodes = [Node(tmp_path / "run.yaml", store.port) for _ in range(2)]
    try:
        wait_until(lambda: len(recorded(run.path, "step")) >= 3, *nodes)
        killed = nodes[1].ranks()
        os.kill(killed[0], signal.SIGKILL)
        reached = load_training_state(run.last)["position"]["step"]
        wait_until(lambda: nodes[1].ranks() not in ([], killed), *nodes)
        wait_until(lambda: len(recorded(run.path, "step")) >= reached + 4, *nodes)
        steps = [line["step"] for line in recorded(run.path, "step")]
        assert steps == list(range(1, len(steps) + 1))  # none is missing or repeated
        nodes[1].process.terminate()  # one node only, as in a preemption
        output = nodes[1].process.communicate(timeout=TIMEOUT)[0]
        nodes[0].process.terminate()  # it waits for another node
        output += nodes[0].process.communicate(timeout=TIMEOUT)[0]
    finally:
        for node in nodes:
            for rank in node.ranks() if node.process.poll() is None else []:
                os.kill(rank, signal.SIGKILL)
            node.process.kill()
    assert "(exitcode: -9) local_rank: 0" in output
    assert "art: stopped by signal 15 after step" in output
    assert "(exitcode: 143) local_rank: 0" in output
    assert load_training_state(run.last)["position"]["step"] == len(recorded(run.path, "step"))
