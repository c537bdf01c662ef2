import gzip
import json

import pytest
import torch

from art.train.trace import StepTrace


def stepped(trace, steps):
    for step in steps:
        trace.before(step)
        torch.ones(8, 8) @ torch.ones(8, 8)
        trace.after(step)


def events(path):
    with gzip.open(path, "rt") as file:
        return [event.get("name") for event in json.load(file)["traceEvents"]]


def test_a_trace_of_the_steps_that_were_asked_for(tmp_path):
    trace = StepTrace(tmp_path / "trace", [2, 3], torch.device("cpu"))
    stepped(trace, range(1, 6))
    trace.close()
    assert [path.name for path in (tmp_path / "trace").iterdir()] == ["steps-2-3.json.gz"]
    assert events(tmp_path / "trace" / "steps-2-3.json.gz").count("aten::mm") == 2


def test_what_was_traced_before_a_stop_is_written(tmp_path):
    trace = StepTrace(tmp_path, [1, 100], torch.device("cpu"), rank=3)
    stepped(trace, [1, 2])
    trace.before(3)
    trace.close()
    assert [path.name for path in tmp_path.iterdir()] == ["steps-1-2-rank-3.json.gz"]


@pytest.mark.parametrize("steps", [None, [7, 9]])
def test_nothing_is_traced_or_written_outside_of_the_steps(tmp_path, steps, monkeypatch):
    monkeypatch.setattr("art.train.trace.profile", lambda **_: pytest.fail("began a trace"))
    trace = StepTrace(tmp_path / "trace", steps, torch.device("cpu"))
    stepped(trace, range(1, 4))
    trace.close()
    assert not (tmp_path / "trace").exists()
