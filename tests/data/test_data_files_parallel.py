"""Tests of art.data.files and art.data.parallel."""

import json
import os
import signal
import time

import pytest

from art.data import files
from art.data.files import Journal, WriteError, atomic_write, check_writable, write_text
from art.data.parallel import Stopped, available_cores, map_processes, stop_requested, worker_slot
from art.data.shards import write_shards


def test_atomic_write(tmp_path):
    def fail(path):
        path.write_text("half")
        raise KeyboardInterrupt

    target = tmp_path / "new" / "a.txt"
    with pytest.raises(KeyboardInterrupt):
        atomic_write(target, fail)
    assert list(target.parent.iterdir()) == []
    atomic_write(target, lambda path: path.write_text("complete"))
    with pytest.raises(KeyboardInterrupt):
        atomic_write(target, fail)
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]
    assert target.read_text() == "complete"


def test_check_writable(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "directory", "--out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"--out .*file is not a directory"):
        check_writable(tmp_path / "file" / "directory", "--out")
    monkeypatch.setattr(files.os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(ValueError, match=r"--to .*directory is not writable"):
        check_writable(tmp_path / "new" / "directory", "--to")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_journal_skips_incomplete_lines(tmp_path):
    path = tmp_path / "new" / "done.jsonl"
    with Journal(path) as journal:
        journal.append({"file": "a", "bytes": 1})
        journal.append({"file": "a", "bytes": 2})
        with pytest.raises(ValueError, match="another process is writing to"), Journal(path):
            pass
    path.write_text(path.read_text() + '{"file": "b"')
    (tmp_path / "new" / "c.mp4.partial").touch()
    with Journal(path) as journal:
        assert journal.entries == {"a": {"file": "a", "bytes": 2}}
        journal.append({"file": "d"})
    assert [path.name for path in path.parent.iterdir()] == ["done.jsonl"]
    assert json.loads(path.read_text().splitlines()[-1]) == {"file": "d"}


def square(value):
    return value * value, os.getpid()


def fail_or_wait(path):
    """Records when it starts and stops; ``fail`` raises an error after the other call has started."""
    other = path.with_name("wait")
    if path.name == "fail":
        while not other.exists():
            time.sleep(0.01)
        raise ValueError("expected failure")
    path.write_text("started")
    while not stop_requested():
        time.sleep(0.01)
    path.write_text("stopped")
    raise Stopped


def get_slot(_):
    time.sleep(0.05)  # so that every process gets an item
    return worker_slot(), os.getpid()


def kill_worker(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_worker_runs_in_this_process():
    assert list(map_processes(square, [1, 2, 3], 1)) == [(i, (i * i, os.getpid())) for i in (1, 2, 3)]
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


@pytest.mark.slow
def test_workers_process_every_item_and_queue_few():
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    results = map_processes(square, items(), 2)
    done = [next(results)]
    assert len(taken) <= 8
    done += results
    assert sorted((item, value) for item, (value, _) in done) == [(i, i * i) for i in range(50)]
    assert os.getpid() not in {process for _, (_, process) in done}


@pytest.mark.slow
def test_each_worker_keeps_its_slot():
    assert list(map_processes(get_slot, [1], 1, ["only"])) == [(1, ("only", os.getpid()))]
    pairs = {value for _, value in map_processes(get_slot, range(40), 2, ["one", "two"])}
    assert {name for name, _ in pairs} <= {"one", "two"}
    assert len({process for _, process in pairs}) == len(pairs) == len({name for name, _ in pairs})
    with pytest.raises(ValueError, match="slots: got 1 for 2 workers"):
        next(map_processes(get_slot, [1], 2, ["only"]))
    list(map_processes(square, [1], 1))
    with pytest.raises(RuntimeError, match="worker_slot: no slot"):
        worker_slot()


@pytest.mark.slow
def test_error_stops_the_other_workers(tmp_path):
    with pytest.raises(ValueError, match="expected failure"):
        list(map_processes(fail_or_wait, [tmp_path / "wait", tmp_path / "fail"], 2))
    assert (tmp_path / "wait").read_text() == "stopped"


@pytest.mark.slow
def test_killed_worker_is_an_error():
    with pytest.raises(RuntimeError, match="terminated unexpectedly"):
        list(map_processes(kill_worker, [1, 2], 2))


def test_errors_of_writing_name_the_file(tmp_path, limited_file_size, clip_set):
    with limited_file_size(1000):
        for path, write in (
            (tmp_path / "a.json", lambda: write_text(tmp_path / "a.json", "x" * 2000)),
            (tmp_path / "shards" / "train-000000.tar.partial", lambda: write_shards(clip_set, tmp_path / "shards")),
        ):
            with pytest.raises(WriteError, match="File too large") as caught:
                write()
            assert caught.value.filename == str(path) and not path.exists()
