import os
import signal
import time

import pytest

from art.data.parallel import Stopped, cores, in_processes, slot, stopping


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


def whose_slot(_):
    time.sleep(0.05)  # so that each process has its turn
    return slot(), os.getpid()


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


def test_each_process_has_a_slot_for_itself():
    assert list(in_processes(whose_slot, [1], 1, ["only"])) == [(1, ("only", os.getpid()))]
    told = {value for _, value in in_processes(whose_slot, range(40), 2, ["one", "two"])}
    assert {name for name, _ in told} <= {"one", "two"}
    assert len({process for _, process in told}) == len(told), "a process keeps its slot"
    assert len({name for name, _ in told}) == len(told), "no two have the same"
    with pytest.raises(ValueError, match="slots: got 1 for 2 workers"):
        next(in_processes(whose_slot, [1], 2, ["only"]))
    list(in_processes(square, [1], 1))
    with pytest.raises(RuntimeError, match="this process has none"):
        slot()


def test_an_error_stops_the_others(tmp_path):
    with pytest.raises(ValueError, match="none of that"):
        list(in_processes(fail_or_wait, [tmp_path / "wait", tmp_path / "fail"], 2))
    assert (tmp_path / "wait").read_text() == "stopped"


def test_a_process_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match="ended unexpectedly"):
        list(in_processes(end_abruptly, [1, 2], 2))


def test_cores():
    assert 1 <= cores() <= (os.cpu_count() or 1)
