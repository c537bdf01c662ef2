from pathlib import Path

import numpy as np
import pytest

from art.data.datasets.clips import Clip, ClipSet
from art.eval.metrics import measure
from art.eval.predictions import Predictions, PredictionsError, ensemble

ROOT = Path("/clips")
NAMES, GROUPS = ("flip", "twist", "leap"), ("VT", "VT", "FX")


@pytest.fixture
def gym():
    """Two parts of one file, a whole file, and one elsewhere that could not be read."""
    clips = (
        Clip(ROOT / "a.mp4", 0, 1.5, 2.5), Clip(ROOT / "a.mp4", 1, 2.5), Clip(ROOT / "b.mp4", 2),
        Clip(Path("/elsewhere/c.mp4"), 2),
    )  # fmt: skip
    return ClipSet("finegym99", "val", ROOT, clips, NAMES, groups=GROUPS)


def answers(rows, indices, *, labels=(0, 1, 2, 2), order=None, names=NAMES, groups=GROUPS):
    labels, indices = np.array(labels)[indices], np.array(indices)
    return measure(np.array(rows, dtype=np.float32), labels, indices, names, order, groups)


ROWS = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.0, 0.2, 0.8]]


@pytest.fixture
def saved(gym, tmp_path):
    """``saved(name, *arguments)`` writes a file."""

    def make(name, *arguments, clip_set=gym, **options):
        path = tmp_path / f"{name}.npz"
        Predictions.of(answers(*arguments, **options), clip_set).save(path)
        return path

    return make


def test_what_was_saved_comes_back_whole(saved):
    order = np.arange(3 * 2 * 4 * 2).reshape(6, 4, 2) % 2
    path = saved("a", ROWS, [0, 1, 2], order=order)
    assert [found.name for found in path.parent.iterdir()] == ["a.npz"], "nothing is left beside it"
    found, expected = Predictions.load(path), answers(ROWS, [0, 1, 2], order=order)
    assert found.evaluation.summary() == expected.summary()
    assert found.evaluation.per_group[0].correct == 1
    assert np.array_equal(found.evaluation.probabilities, expected.probabilities)
    assert np.array_equal(found.evaluation.order, order) and found.evaluation.order.dtype == np.int64
    assert (found.dataset, found.split, found.listed) == ("finegym99", "val", 4)
    assert found.paths == ("a.mp4", "a.mp4", "b.mp4")
    np.testing.assert_array_equal(found.starts, [1.5, 2.5, np.nan])
    np.testing.assert_array_equal(found.ends, [2.5, np.nan, np.nan])


def test_without_groups_and_tracklets(saved, gym):
    plain = ClipSet("csv", "test", ROOT, gym.clips, NAMES)
    found = Predictions.load(saved("a", [[0, 0, 1]], [3], groups=(), clip_set=plain))
    assert (found.evaluation.groups, found.evaluation.order, found.paths) == ((), None, ("/elsewhere/c.mp4",))


def test_models_are_averaged_clip_by_clip_in_any_order(saved):
    first = Predictions.load(saved("a", ROWS, [0, 1, 2]))
    second = Predictions.load(saved("b", [[0.1, 0.1, 0.8], [0.0, 1.0, 0.0], [0.2, 0.8, 0.0]], [2, 1, 0]))
    both = ensemble([first, second], ["a", "b"])
    expected = [[0.4, 0.55, 0.05], [0.25, 0.7, 0.05], [0.05, 0.15, 0.8]]
    np.testing.assert_allclose(both.evaluation.probabilities, expected, atol=1e-7)
    assert both.evaluation.probabilities.dtype == np.float32
    assert both.evaluation.confusion.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert both.evaluation.groups == GROUPS and both.paths == first.paths and both.evaluation.relinked is None
    assert ensemble([first], ["a"]) is first


def test_what_is_not_of_the_same_clips_is_refused(saved, gym):
    first = Predictions.load(saved("a", ROWS, [0, 1, 2]))

    def refused(told, *arguments, **options):
        with pytest.raises(PredictionsError, match=told):
            ensemble([first, Predictions.load(saved("b", *arguments, **options))], ["a.npz", "b.npz"])

    refused(
        r"a\.npz and b\.npz: are not of the same clips: 1 of the first.* and 0 of.*such as b\.mp4", ROWS[:2], [0, 1]
    )
    refused(r"0 of the first .* and 1 of the second .* such as /elsewhere/c\.mp4", [*ROWS, ROWS[0]], [0, 1, 2, 3])
    shifted = ClipSet("x", "val", ROOT, (Clip(ROOT / "a.mp4", 0, 1.25, 2.5), *gym.clips[1:]), NAMES, groups=GROUPS)
    refused("1 of the first are not in the second and 1 of the second", ROWS, [0, 1, 2], clip_set=shifted)
    refused("give 1 clips other labels", ROWS, [0, 1, 2], labels=(0, 1, 1, 2))
    refused("have other classes", ROWS, [0, 1, 2], names=("twist", "flip", "leap"))
    refused("in other groups", ROWS, [0, 1, 2], groups=("VT", "FX", "FX"))


def test_what_holds_no_predictions_is_refused(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz: no such file; expected a predictions\.npz"):
        Predictions.load(tmp_path / "nothing.npz")
    broken = tmp_path / "broken.npz"
    for content in (b"", b"no archive", saved("a", ROWS, [0, 1, 2]).read_bytes()[:300]):
        broken.write_bytes(content)
        with pytest.raises(PredictionsError, match=r"broken\.npz: is no NumPy archive of predictions"):
            Predictions.load(broken)
    np.savez(broken, probabilities=np.ones((1, 1)), labels=np.zeros(1), format=1)
    with pytest.raises(PredictionsError, match=r"lacks dataset, split, listed, .*expected format 1; evaluate again"):
        Predictions.load(broken)
    with np.load(saved("a", ROWS, [0, 1, 2])) as archive:
        content = dict(archive)
    np.savez(broken, **{**content, "format": 99})
    with pytest.raises(PredictionsError, match="is of format 99"):
        Predictions.load(broken)
    np.savez(broken, **{**content, "labels": np.array([0, 1, 7])})
    with pytest.raises(PredictionsError, match=r"broken\.npz: labels: got 0\.\.7"):
        Predictions.load(broken)


def test_objects_in_a_file_are_not_unpickled(tmp_path):
    class Danger:
        def __reduce__(self):
            return pytest.fail, ("was executed",)

    np.savez(tmp_path / "bad.npz", format=np.array(Danger(), dtype=object))
    with pytest.raises(PredictionsError, match="is no NumPy archive of predictions"):
        Predictions.load(tmp_path / "bad.npz")


def test_an_interrupted_write_leaves_the_former_file(saved, monkeypatch):
    path = saved("a", ROWS, [0, 1, 2])
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez_compressed", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        saved("a", ROWS[:1], [0])
    assert path.read_bytes() == before
