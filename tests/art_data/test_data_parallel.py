import os
import signal
import time

import pytest

from art.data.parallel import Stopped, cores, in_processes, stopping


def square(value):
    return value * value, os.getpid()


def wait_to_be_stopped(path):
    """Notes that it began, and how it ended."""
    path.write_text("begun")
    while not stopping():
        time.sleep(0.01)
    path.write_text("stopped")
    raise Stopped


def fail_or_wait(path):
    if path is None:
        raise ValueError("none of that")
    return wait_to_be_stopped(path)


def end_abruptly(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_with_one_worker_everything_happens_here():
    assert list(in_processes(square, [1, 2, 3], 1)) == [(i, (i * i, os.getpid())) for i in (1, 2, 3)]


def test_every_item_is_done_elsewhere_and_few_are_taken_ahead():
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    results = in_processes(square, items(), 2)
    done = [next(results)]
    assert len(taken) <= 8
    done += results
    assert sorted((item, value) for item, (value, _) in done) == [(i, i * i) for i in range(50)]
    assert os.getpid() not in {process for _, (_, process) in done}


def test_an_error_stops_the_others(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(ValueError, match="none of that"):
        list(in_processes(fail_or_wait, [path, None], 2))
    assert not path.exists() or path.read_text() == "stopped"


def test_closing_stops_what_runs(tmp_path):
    paths = [tmp_path / name for name in "abc"]

    def items():
        yield from paths
        while not (paths[0].exists() and paths[1].exists()):
            time.sleep(0.01)
        raise KeyboardInterrupt  # as Ctrl-C does at any place

    with pytest.raises(KeyboardInterrupt):
        list(in_processes(wait_to_be_stopped, items(), 2))
    assert {path.read_text() for path in paths if path.exists()} == {"stopped"}


def test_a_process_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match="ended unexpectedly"):
        list(in_processes(end_abruptly, [1, 2], 2))


def test_cores():
    assert 1 <= cores() <= (os.cpu_count() or 1)
