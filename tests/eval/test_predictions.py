import json
from pathlib import Path

import numpy as np
import pytest

from art.data.datasets.base import Clip, ClipSet
from art.eval.metrics import compute_metrics
from art.eval.predictions import Predictions, PredictionsError, ensemble, score

ROOT = Path("/clips")
NAMES, GROUPS = ("flip", "twist", "leap"), ("VT", "VT", "FX")
ROWS = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.0, 0.2, 0.8]]


@pytest.fixture
def gym():
    """Two parts of one file, an entire file, and one outside the root that could not be read."""
    clips = (
        Clip(ROOT / "a.mp4", 0, 1.5, 2.5), Clip(ROOT / "a.mp4", 1, 2.5), Clip(ROOT / "b.mp4", 2),
        Clip(Path("/elsewhere/c.mp4"), 2),
    )  # fmt: skip
    return ClipSet("finegym99", "val", ROOT, clips, NAMES, groups=GROUPS)


def evaluation(rows, indices, *, labels=(0, 1, 2, 2), order=None, names=NAMES, groups=GROUPS):
    labels, indices = np.array(labels)[indices], np.array(indices)
    return compute_metrics(np.array(rows, dtype=np.float32), labels, indices, names, order, groups)


@pytest.fixture
def saved(gym, tmp_path):
    """``saved(name, *arguments)`` writes a file."""

    def make(name, *arguments, clip_set=gym, **options):
        path = tmp_path / f"{name}.npz"
        Predictions.of(evaluation(*arguments, **options), clip_set).save(path)
        return path

    return make


def test_round_trip(saved):
    order = np.arange(3 * 2 * 4 * 2).reshape(6, 4, 2) % 2
    path = saved("a", ROWS, [0, 1, 2], order=order)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.npz"], "no temporary file remains"
    loaded, expected = Predictions.load(path), evaluation(ROWS, [0, 1, 2], order=order)
    assert loaded.evaluation.summary() == expected.summary()
    assert loaded.evaluation.per_group[0].correct == 1
    assert np.array_equal(loaded.evaluation.probabilities, expected.probabilities)
    assert np.array_equal(loaded.evaluation.order, order) and loaded.evaluation.order.dtype == np.int64
    assert (loaded.dataset, loaded.split, loaded.listed) == ("finegym99", "val", 4)
    assert loaded.paths == ("a.mp4", "a.mp4", "b.mp4")
    np.testing.assert_array_equal(loaded.starts, [1.5, 2.5, np.nan])
    np.testing.assert_array_equal(loaded.ends, [2.5, np.nan, np.nan])


def test_round_trip_without_groups_and_tracklets(saved, gym):
    plain = ClipSet("csv", "test", ROOT, gym.clips, NAMES)
    loaded = Predictions.load(saved("a", [[0, 0, 1]], [3], groups=(), clip_set=plain))
    assert (loaded.evaluation.groups, loaded.evaluation.order, loaded.paths) == ((), None, ("/elsewhere/c.mp4",))


def test_ensemble_matches_clips_in_any_order(saved):
    first = Predictions.load(saved("a", ROWS, [0, 1, 2]))
    second = Predictions.load(saved("b", [[0.1, 0.1, 0.8], [0.0, 1.0, 0.0], [0.2, 0.8, 0.0]], [2, 1, 0]))
    both = ensemble([first, second], ["a", "b"])
    expected = [[0.4, 0.55, 0.05], [0.25, 0.7, 0.05], [0.05, 0.15, 0.8]]
    np.testing.assert_allclose(both.evaluation.probabilities, expected, atol=1e-7)
    assert both.evaluation.probabilities.dtype == np.float32
    assert both.evaluation.confusion.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert both.evaluation.groups == GROUPS and both.paths == first.paths and both.evaluation.relinked is None
    assert ensemble([first], ["a"]) is first


def test_ensemble_of_incompatible_predictions(saved, gym):
    first = Predictions.load(saved("a", ROWS, [0, 1, 2]))

    def check(message, *arguments, **options):
        with pytest.raises(PredictionsError, match=message):
            ensemble([first, Predictions.load(saved("b", *arguments, **options))], ["a.npz", "b.npz"])

    check(r"a\.npz and b\.npz: clips differ: 1 of the first.* and 0 of.*such as b\.mp4", ROWS[:2], [0, 1])
    check(r"0 of the first .* and 1 of the second .* such as /elsewhere/c\.mp4", [*ROWS, ROWS[0]], [0, 1, 2, 3])
    shifted = ClipSet("x", "val", ROOT, (Clip(ROOT / "a.mp4", 0, 1.25, 2.5), *gym.clips[1:]), NAMES, groups=GROUPS)
    check("1 of the first are not in the second and 1 of the second", ROWS, [0, 1, 2], clip_set=shifted)
    check("labels of 1 clips differ", ROWS, [0, 1, 2], labels=(0, 1, 1, 2))
    check("classes or their order differ", ROWS, [0, 1, 2], names=("twist", "flip", "leap"))
    check("groups of classes differ", ROWS, [0, 1, 2], groups=("VT", "FX", "FX"))


def test_invalid_files(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz: no such file; expected a predictions\.npz"):
        Predictions.load(tmp_path / "nothing.npz")
    broken = tmp_path / "broken.npz"
    for content in (b"", b"no archive", saved("a", ROWS, [0, 1, 2]).read_bytes()[:300]):
        broken.write_bytes(content)
        with pytest.raises(PredictionsError, match=r"broken\.npz: not a NumPy archive of predictions"):
            Predictions.load(broken)
    np.savez(broken, probabilities=np.ones((1, 1)), labels=np.zeros(1), format=1)
    with pytest.raises(PredictionsError, match=r"lacks dataset, split, listed, .*expected format 1; run the"):
        Predictions.load(broken)
    with np.load(saved("a", ROWS, [0, 1, 2])) as archive:
        content = dict(archive)
    np.savez(broken, **{**content, "format": 99})
    with pytest.raises(PredictionsError, match="has format 99"):
        Predictions.load(broken)
    np.savez(broken, **{**content, "labels": np.array([0, 1, 7])})
    with pytest.raises(PredictionsError, match=r"broken\.npz: labels: got 0\.\.7"):
        Predictions.load(broken)


def test_loading_executes_nothing(tmp_path):
    class Malicious:
        def __reduce__(self):
            return pytest.fail, ("was executed",)

    np.savez(tmp_path / "bad.npz", format=np.array(Malicious(), dtype=object))
    with pytest.raises(PredictionsError, match="not a NumPy archive of predictions"):
        Predictions.load(tmp_path / "bad.npz")


def test_interrupted_write_keeps_the_previous_file(saved, monkeypatch):
    path = saved("a", ROWS, [0, 1, 2])
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez_compressed", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        saved("a", ROWS[:1], [0])
    assert path.read_bytes() == before and [entry.name for entry in path.parent.iterdir()] == ["a.npz"]


def test_score_reproduces_the_results_of_a_run(unbroken, tmp_path):
    run = unbroken / "art"
    scored = score([run / "predictions.npz"], report=tmp_path / "again")
    expected = json.loads((run / "evaluation.json").read_text())
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    keys = ("clips", "top1", "top5", "mean_class_accuracy", "relinked", "per_class", "confusion", "dataset", "split",
            "unreadable_clips", "correct_top1", "per_group")  # fmt: skip
    assert {key: again[key] for key in keys} == {key: expected[key] for key in keys}
    assert again["predictions"] == [str(run / "predictions.npz")]
    page = (tmp_path / "again" / "report.html").read_text()
    assert "Predictions on csv" in page and f"{100 * expected['top1']:.1f} %" in page
    rescored = score([tmp_path / "again" / "predictions.npz"])
    np.testing.assert_array_equal(rescored.evaluation.probabilities, scored.evaluation.probabilities)


def test_score_accepts_a_directory_with_predictions(saved, tmp_path):
    file = saved("predictions", ROWS, [0, 1, 2])
    run = file.parent
    assert score([run]).evaluation.top1 == score([file]).evaluation.top1
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=r"checkpoints: directory without predictions\.npz, expected"):
        score([tmp_path / "checkpoints"])
    with pytest.raises(PredictionsError, match="passed more than once"):
        score([run, file])
    with pytest.raises(PredictionsError, match="contains the predictions themselves"):
        score([run], report=run)


def test_score_of_an_ensemble_is_the_mean(unbroken, tmp_path):
    files = [unbroken / kind / "predictions.npz" for kind in ("backbone", "art")]
    both = score(files, report=tmp_path / "both")
    members = [score([file]).evaluation.probabilities for file in files]
    np.testing.assert_allclose(both.evaluation.probabilities, np.mean(members, axis=0), rtol=1e-6)
    assert "Ensemble on csv" in (tmp_path / "both" / "report.html").read_text()


def test_score_refuses_to_overwrite_or_repeat_files(unbroken):
    file = unbroken / "art" / "predictions.npz"
    before = (unbroken / "art" / "evaluation.json").read_text()
    with pytest.raises(PredictionsError, match="contains the predictions themselves, expected another directory"):
        score([file], report=unbroken / "art" / "." / "")
    assert (unbroken / "art" / "evaluation.json").read_text() == before
    with pytest.raises(PredictionsError, match="passed more than once"):
        score([file, unbroken / "." / "art" / "predictions.npz"])
