import asyncio
import time

import pytest

from art.tools.serve.clips import Busy, Clips, safe_name
from art.tools.serve.limits import Refused


class Answers:
    """Notes what it is given; refuses clips called "bad", and breaks with "worse"."""

    def __init__(self):
        self.given = []

    def answer(self, clip, out, step):
        self.given.append(clip.name)
        assert clip.read_bytes() == b"clip"
        if clip.name == "bad":
            raise Refused("It is bad.")
        if clip.name == "worse":
            raise ZeroDivisionError(f"in {clip}")
        out.mkdir()
        return {"frames": 1}


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
def clips(answers, tmp_path):
    return Clips(tmp_path, answers, keep=60, most_waiting=3)


def bring(clips, name):
    clip = clips.admit(name)
    clip.source.write_bytes(b"clip")
    clips.submit(clip)
    return clip


def work(clips, done):
    """Let it work until ``done()``."""

    async def run():
        task = asyncio.create_task(clips.work())
        while not done():
            await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_one_after_the_other_in_the_order_in_which_they_came(clips, answers):
    brought = [bring(clips, name) for name in ("a", "b", "c")]
    assert [clips.ahead(clip) for clip in brought] == [0, 1, 2]
    work(clips, lambda: brought[-1].ended)
    assert answers.given == ["a", "b", "c"]
    assert [clip.told(0)["answer"] for clip in brought] == [{"frames": 1}] * 3


def test_the_clip_is_removed_once_it_was_looked_at_whatever_came_of_it(clips, tmp_path, caplog):
    good, bad, worse = (bring(clips, name) for name in ("good", "bad", "worse"))
    work(clips, lambda: worse.ended)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (good.state, bad.state, bad.message) == ("done", "refused", "It is bad.")
    assert worse.message.startswith("Something went wrong here") and str(tmp_path) not in worse.message
    assert "ZeroDivisionError" in caplog.text


def test_too_many_at_once_are_not_let_in(clips):
    waiting = [clips.admit("x") for _ in range(3)]
    with pytest.raises(Busy, match="Too many clips are waiting"):
        clips.admit("y")
    clips.remove(waiting[0])
    clips.admit("y")


def test_answers_go_when_they_are_old_and_when_there_are_many(clips, answers, tmp_path, monkeypatch):
    monkeypatch.setattr("art.tools.serve.clips._MOST_KEPT", 2)
    brought = [bring(clips, name) for name in ("a", "b", "c")]
    work(clips, lambda: brought[-1].ended)
    clips.clean_now(time.monotonic())
    assert [clips.find(clip.id) is not None for clip in brought] == [False, True, True]
    clips.clean_now(time.monotonic() + 59)
    assert clips.find(brought[2].id) is brought[2]
    clips.clean_now(time.monotonic() + 61)
    assert clips.find(brought[2].id) is None and not list(tmp_path.iterdir())


def test_nobody_waits_for_those_who_left(clips, answers, tmp_path):
    left, stayed = bring(clips, "left"), bring(clips, "stayed")
    left.seen -= 31
    clips.clean_now(time.monotonic())
    work(clips, lambda: stayed.ended)
    assert answers.given == ["stayed"] and clips.find(left.id) is None


def test_a_clip_that_stops_on_its_way_gives_its_place_back(clips):
    stuck = [clips.admit("x") for _ in range(3)]
    stuck[0].seen -= 31
    clips.clean_now(time.monotonic())
    assert not stuck[0].wanted and not stuck[0].source.parent.exists() and stuck[1].wanted
    clips.admit("y")


def test_a_clip_is_not_removed_from_under_the_work(clips, answers, tmp_path):
    clip = bring(clips, "a")
    clip.state = "working"
    clips.remove(clip)
    assert clip.source.exists() and clips.find(clip.id) is None
    clip.state = "waiting"
    work(clips, lambda: not list(tmp_path.iterdir()))
    assert answers.given == ["a"]


def test_ids_are_not_guessed(clips):
    ids = {clips.admit("x").id for _ in range(3)}
    assert len(ids) == 3 and all(len(id) >= 22 for id in ids)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a walk.mp4", "a walk.mp4"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("..\\x.mp4", "_x.mp4"),
        ("", "clip"),
        ("...", "clip"),
        ("cost $5 and $6.mp4", "cost _5 and _6.mp4"),
        ("line\nbreak\0.mp4", "linebreak.mp4"),
        ("x" * 300 + ".webm", "x" * 75 + ".webm"),
    ],
)
def test_names_lead_nowhere(name, safe):
    assert safe_name(name) == safe


def test_a_name_of_wide_letters_still_fits_a_file_system():
    assert len(safe_name("体" * 300 + ".mp4").encode()) <= 255 and safe_name("体操.mp4") == "体操.mp4"
