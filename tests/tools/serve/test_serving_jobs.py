import asyncio
import re
import time

import pytest

from art.tools import serve
from art.tools.serve.jobs import JobQueue, Limits, QueueFull, Refused, RequestOptions, safe_name


class Predictor:
    """Records the clips; refuses those named "bad", and raises for "worse"."""

    def __init__(self):
        self.clips = []

    def predict(self, clip, out, report):
        self.clips.append(clip.name)
        assert clip.read_bytes() == b"clip"
        if clip.name == "bad":
            raise Refused("It is bad.")
        if clip.name == "worse":
            raise ZeroDivisionError(f"in {clip}")
        out.mkdir()
        return {"frames": 1}


@pytest.fixture
def predictor():
    return Predictor()


@pytest.fixture
def queue(predictor, tmp_path):
    return JobQueue(tmp_path, predictor, keep=60, max_waiting=3)


def submit(queue, name):
    job = queue.create(name)
    job.source.write_bytes(b"clip")
    queue.submit(job)
    return job


def run_until(queue, done):
    async def run():
        task = asyncio.create_task(queue.run())
        while not done():
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_jobs_are_processed_in_order_and_have_unguessable_ids(queue, predictor):
    jobs = [submit(queue, name) for name in ("a", "b", "c")]
    assert [queue.status(job)["ahead"] for job in jobs] == [0, 1, 2]
    run_until(queue, lambda: jobs[-1].ended)
    assert predictor.clips == ["a", "b", "c"]
    assert [queue.status(job)["result"] for job in jobs] == [{"frames": 1}] * 3
    assert len({job.id for job in jobs}) == 3 and all(len(job.id) >= 22 for job in jobs)


def test_clip_is_deleted_after_success_refusal_and_error(queue, tmp_path, caplog):
    good, bad, worse = (submit(queue, name) for name in ("good", "bad", "worse"))
    run_until(queue, lambda: worse.ended)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (good.state, bad.state, bad.message) == ("done", "refused", "It is bad.")
    assert worse.message.startswith("Something went wrong") and str(tmp_path) not in worse.message
    assert "ZeroDivisionError" in caplog.text


def test_expired_and_excess_results_are_removed(queue, tmp_path, monkeypatch):
    monkeypatch.setattr("art.tools.serve.jobs._MAX_RESULTS", 2)
    jobs = [submit(queue, name) for name in ("a", "b", "c")]
    run_until(queue, lambda: jobs[-1].ended)
    queue.clean_up(time.monotonic())
    assert [queue.find(job.id) is not None for job in jobs] == [False, True, True]
    queue.clean_up(jobs[-1].ended + 59)
    assert queue.find(jobs[2].id) is jobs[2]
    queue.clean_up(jobs[-1].ended + 61)
    assert queue.find(jobs[2].id) is None and not list(tmp_path.iterdir())


def test_jobs_of_clients_that_left_are_skipped(queue, predictor):
    abandoned, active = submit(queue, "abandoned"), submit(queue, "active")
    abandoned.last_seen -= 31
    queue.clean_up(time.monotonic())
    run_until(queue, lambda: active.ended)
    assert predictor.clips == ["active"] and queue.find(abandoned.id) is None


def test_slow_uploads_free_their_places(queue):
    stalled, trickling, fast = (queue.create("x") for _ in range(3))
    start = max(job.started for job in (stalled, trickling, fast))
    trickling.received, fast.received = 7, 64_000 * 31
    for job in (stalled, trickling, fast):
        job.last_seen = start + 40  # recent data does not help
    queue.clean_up(start + 9)
    assert not stalled.removed and not trickling.removed
    queue.clean_up(start + 40)
    assert stalled.removed and trickling.removed and not fast.removed
    assert not stalled.source.parent.exists()
    queue.create("y"), queue.create("y")
    with pytest.raises(QueueFull, match="Too many clips are waiting"):
        queue.create("z")
    queue.clean_up(start + 42)
    assert fast.removed


def test_files_in_use_are_removed_after_the_work(queue, predictor, tmp_path):
    job = submit(queue, "a")
    job.state = "working"
    queue.remove(job)
    assert job.source.exists() and queue.find(job.id) is None
    job.state = "waiting"
    run_until(queue, lambda: not list(tmp_path.iterdir()))
    assert predictor.clips == ["a"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a walk.mp4", "a walk.mp4"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..\\x.mp4", "_x.mp4"),
        ("", "clip"),
        ("...", "clip"),
        ("cost $5 and $6.mp4", "cost $5 and $6.mp4"),
        ("line\nbreak\0.mp4", "linebreak.mp4"),
        ("x" * 300 + ".webm", "x" * 75 + ".webm"),
        ("体" * 300 + ".mp4", "体" * 65 + ".mp4"),
        ("体操.mp4", "体操.mp4"),
    ],
)
def test_safe_name(name, safe):
    assert safe_name(name) == safe and len(safe.encode()) <= 255


def test_limits_must_be_positive():
    for name in ("megabytes", "seconds", "frames", "megapixels"):
        with pytest.raises(ValueError, match=re.escape(f"--max-{name}: got 0, expected more than 0")):
            Limits(**{name: 0})
        with pytest.raises(ValueError, match=f"--max-{name}"):
            Limits(**{name: float("nan")})


def test_deprecated_name():
    with pytest.deprecated_call():
        assert serve.Asking is RequestOptions
