"""Training and evaluation from shards, and the report on them."""

import pytest

from art.data.datasets.registry import open_dataset
from art.data.loading.dataset import ClipDataset
from art.data.loading.shard_loader import ShardDataset
from art.data.loading.shards import write_shards
from art.train import batches
from art.train.loop import train

pytest.importorskip("webdataset")


def test_a_run_from_shards_sees_each_clip_once_an_epoch(clips, configured, tmp_path, monkeypatch):
    for split in ("train", "test"):
        write_shards(open_dataset("csv", clips, split), tmp_path / "shards", shard_bytes=4000)
    drawn = []
    draw = ClipDataset.draw

    def watch(self, epoch, index):
        assert type(self) is ShardDataset
        if self.train:
            drawn.append((epoch, index))
        return draw(self, epoch, index)

    monkeypatch.setattr(ClipDataset, "draw", watch)
    monkeypatch.setattr(batches, "ClipDataset", None, raising=False)
    where = ["data.name=shards", f"data.root={tmp_path / 'shards'}", "optim.epochs=2", "report=true"]
    result = train(configured(tmp_path / "run", *where))
    assert len(result.evaluation.labels) == 6
    for epoch in range(2):
        seen = [index for e, index in drawn if e == epoch]
        assert len(seen) == len(set(seen)) == 8, "nine clips in batches of four, the last one left out"
    assert (tmp_path / "run" / "report.html").stat().st_size > 0
