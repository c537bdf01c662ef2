"""What becomes of the process that looks at clips, with a stand-in for the model."""

import threading
import time
from pathlib import Path

import pytest
import stand_ins

from art.tools.serve.analyst import Analyst
from art.tools.serve.limits import Refused


@pytest.fixture
def start():
    begun = []

    def make(checkpoint="fit", **options):
        analyst = Analyst(Path(checkpoint), None, work=stand_ins.work, **options)
        begun.append(analyst)
        return analyst

    yield make
    for analyst in begun:
        analyst.close()


def ask(analyst, name, steps=None):
    return analyst.answer(Path(name), Path("out"), [].append if steps is None else steps.append)


def test_answers_and_refusals_come_from_one_process(start):
    analyst, steps = start(), []
    pid = analyst.start()["pid"]
    assert ask(analyst, "good", steps) == {"pid": pid} and steps == ["good"]
    with pytest.raises(Refused, match=r"^It is bad.$"):
        ask(analyst, "bad")
    assert ask(analyst, "good") == {"pid": pid}


def test_a_clip_that_ends_the_process_or_takes_too_long_costs_only_itself(start):
    analyst = start(timeout=1.0)
    pids = {analyst.start()["pid"]}
    with pytest.raises(Refused, match="Something went wrong here while your clip was looked at"):
        ask(analyst, "crash")
    pids.add(ask(analyst, "good")["pid"])
    with pytest.raises(Refused, match="longer than 1 s"):
        ask(analyst, "hang")
    pids.add(ask(analyst, "good")["pid"])
    assert len(pids) == 3


def test_what_is_wrong_with_the_model_is_told_at_the_start(start):
    with pytest.raises(ValueError, match="it is unfit"):
        start("unfit").start()
    with pytest.raises(RuntimeError, match="the process that loads the model ended"):
        start("dies").start()


def test_closing_does_not_wait_for_a_clip(start):
    analyst, told = start(), []

    def look():
        with pytest.raises(Refused) as refused:
            ask(analyst, "hang")
        told.append(refused)

    analyst.start()
    thread = threading.Thread(target=look)
    thread.start()
    time.sleep(0.2)
    analyst.close()
    thread.join(5)
    assert told
    with pytest.raises(Refused, match="is being closed"):
        ask(analyst, "good")
