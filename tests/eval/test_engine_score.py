import json

import numpy as np
import pytest

from art.eval.predictions import PredictionsError
from art.eval.score import score


def test_a_run_is_scored_again_from_its_file_alone(unbroken, tmp_path):
    run = unbroken / "art"
    scored = score([run / "predictions.npz"], report=tmp_path / "again")
    told = json.loads((run / "evaluation.json").read_text())
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    own = ("clips", "top1", "top5", "mean_class_accuracy", "relinked", "per_class", "confusion", "dataset", "split",
           "unreadable_clips", "correct_top1", "per_group")  # fmt: skip
    assert {name: again[name] for name in own} == {name: told[name] for name in own}
    assert again["predictions"] == [str(run / "predictions.npz")]
    page = (tmp_path / "again" / "report.html").read_text()
    assert "Predictions on csv" in page and f"{100 * told['top1']:.1f} %" in page
    np.testing.assert_array_equal(
        score([tmp_path / "again" / "predictions.npz"]).evaluation.probabilities, scored.evaluation.probabilities
    )


def test_an_ensemble_is_the_mean(unbroken, tmp_path):
    files = [unbroken / kind / "predictions.npz" for kind in ("backbone", "art")]
    both = score(files, report=tmp_path / "both")
    members = [score([file]).evaluation.probabilities for file in files]
    np.testing.assert_allclose(both.evaluation.probabilities, np.mean(members, axis=0), rtol=1e-6)
    assert "Ensemble on csv" in (tmp_path / "both" / "report.html").read_text()


def test_what_would_lose_or_count_twice_is_refused(unbroken, tmp_path):
    file = unbroken / "art" / "predictions.npz"
    before = (unbroken / "art" / "evaluation.json").read_text()
    with pytest.raises(PredictionsError, match="holds the predictions themselves, expected another folder"):
        score([file], report=unbroken / "art" / "." / "")
    assert (unbroken / "art" / "evaluation.json").read_text() == before
    with pytest.raises(PredictionsError, match="is given more than once"):
        score([file, unbroken / "." / "art" / "predictions.npz"])
