"""A data set with some of its files missing or broken trains, and says which."""

import logging

import pytest

from art.data.loading.dataset import DataError
from art.train.loop import train

CLASSES = ("move right", "move left", "stand")


@pytest.fixture(scope="module")
def holed(tmp_path_factory, write_clip):
    """Forty clips to train on, of which one is missing and one is cut off, and four to test."""
    root = tmp_path_factory.mktemp("holed")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for split, count in (("train", 40), ("test", 4)):
        names = [f"{split}_{i:02}.mp4" for i in range(count)]
        (root / f"{split}.csv").write_text("path,label\n" + "".join(f"{n},{i % 3}\n" for i, n in enumerate(names)))
        for i, name in enumerate(names):
            write_clip(root / name, i % 3, row=i % 6)
    (root / "train_07.mp4").unlink()
    whole = (root / "train_23.mp4").read_bytes()
    (root / "train_23.mp4").write_bytes(whole[: len(whole) // 2])
    return root


def test_a_twentieth_may_be_bad_and_is_named(holed, configured, tmp_path, caplog):
    config = configured(tmp_path / "run", f"data.root={holed}", "data.max_bad_share=0.05", "optim.epochs=1")
    with caplog.at_level(logging.WARNING):
        result = train(config)
    assert result.evaluation.total == 4
    told = [record.getMessage() for record in caplog.records if "replaced by the next" in record.getMessage()]
    assert len(told) == 2
    assert "train_07.mp4 is replaced by the next: there is no such file" in told[0]
    assert "train_23.mp4 is replaced by the next" in told[1]


def test_more_than_that_is_refused_with_their_names(holed, configured, tmp_path):
    config = configured(tmp_path / "run", f"data.root={holed}", "data.max_bad_share=0.03", "optim.epochs=1")
    with pytest.raises(DataError, match=r"2 of 40 clips \(5\.0%\) cannot be read") as refused:
        train(config)
    assert "train_07.mp4" in str(refused.value) and "train_23.mp4" in str(refused.value)
