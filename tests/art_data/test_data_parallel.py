import os
import signal
import time

import pytest

from art.data.parallel import Stopped, cores, in_processes, stopping


def square(value):
    return value * value, os.getpid()


def fail_or_wait(path):
    """Notes that it began, and how it ended; ``fail`` fails when the other one has begun."""
    other = path.with_name("wait")
    if path.name == "fail":
        while not other.exists():
            time.sleep(0.01)
        raise ValueError("none of that")
    path.write_text("begun")
    while not stopping():
        time.sleep(0.01)
    path.write_text("stopped")
    raise Stopped


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
    with pytest.raises(ValueError, match="none of that"):
        list(in_processes(fail_or_wait, [tmp_path / "wait", tmp_path / "fail"], 2))
    assert (tmp_path / "wait").read_text() == "stopped"


def test_a_process_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match="ended unexpectedly"):
        list(in_processes(end_abruptly, [1, 2], 2))


def test_cores():
    assert 1 <= cores() <= (os.cpu_count() or 1)
