"""Clips stored in shards."""

import dataclasses
import json
import tarfile
import zlib
from pathlib import Path

import av
import pytest
import torch

from art.cli import main
from art.data import shards as shards_module
from art.data.dataset import LANES, ClipDataset, DataError, ShardDataset
from art.data.datasets.base import Clip, ClipSet, dataset_splits, open_dataset
from art.data.decoding.frames import StoredClip
from art.data.decoding.video import VideoError, read_clip, read_frames
from art.data.loader import build_loader, dataset_of
from art.data.shards import open_shards, read_shard, write_shards
from art.data.transforms.sampling import segment_indices


def loaded(dataset, size=4, epoch=0, skip=0, **options):
    loader = build_loader(dataset, size, **options)
    loader.set_epoch(epoch, skip=skip)
    assert len(loader) == loader._order.num_batches() - skip
    batches = list(loader)
    loader.close()
    return batches


def indices(batches):
    return [batch["index"].tolist() for batch in batches]


def flat(batches):
    return [index for batch in batches for index in batch]


def test_write_and_open(many, shards, tmp_path):
    assert len(shards.shards) == 10 and len(shards) == 40
    opened = open_dataset("shards", tmp_path / "shards", "train")
    assert opened == shards
    for name in ("name", "split", "class_names", "prompts", "mirror", "groups"):
        assert getattr(opened, name) == getattr(many, name)
    assert dataset_splits("shards", tmp_path / "shards") == ("train",)
    keys = [int(clip.path.name) for clip in opened]
    assert sorted(keys) == list(range(40)) and keys != sorted(keys), "clips are shuffled once"
    assert all(clip.label == many.clips[key].label for key, clip in zip(keys, opened, strict=True))
    assert list(opened.shard_of) == sorted(opened.shard_of)
    again = write_shards(many, tmp_path / "again", shard_bytes=4 * many.clips[0].path.stat().st_size)
    for one, other in zip(shards.shards, again.shards, strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes(), "the same clips result in the same bytes"


def test_shard_format(many, shards):
    with tarfile.open(shards.shards[0]) as tar:
        names = tar.getnames()
        key = shards.clips[0].path.name
        metadata = json.load(tar.extractfile(f"{key}.json"))
    assert {*names[:2]} == {f"{key}.mp4", f"{key}.json"}
    label = int(key) % 3
    crc = zlib.crc32(many.clips[int(key)].path.read_bytes())
    path = f"{int(key)}.mp4"
    assert metadata == {"label": label, "class": "abc"[label], "path": path, "files": ["mp4"], "crc32": [crc]}
    (first, clip), *others = read_shard(shards.shards[0])
    assert (first, len(others)) == (key, 3)
    assert clip.files == {"mp4": many.clips[int(key)].path.read_bytes()}


def test_webdataset_reads_the_shards(shards):
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(shards.shards[0], shardshuffle=False))
    clips = dict(read_shard(shards.shards[0]))
    assert [sample["__key__"] for sample in samples] == list(clips)
    assert all(sample["mp4"] == clips[sample["__key__"]].files["mp4"] for sample in samples)


def test_stored_clip(decoder, tmp_path, numbered):
    path = numbered(tmp_path / "a.mp4", 20)
    stored = StoredClip("a", {"mp4": path.read_bytes()})
    assert torch.equal(read_clip(stored, 5, decoder=decoder), read_clip(path, 5, decoder=decoder))
    for content in (b"", b"text"):
        with pytest.raises(VideoError, match=r"^a: (is empty|cannot be read)"):
            read_clip(StoredClip("a", {"mp4": content}), 5, decoder=decoder)


def test_batches(shards, many, read_numbers):
    assert (dataset_of(shards), dataset_of(many)) == (ShardDataset, ClipDataset)
    dataset = dataset_of(shards)(shards, 4, train=False, frame_size=16)
    batches = loaded(dataset)
    assert set(batches[0]) == {"video", "label", "index", "draws"}
    assert sorted(flat(indices(batches))) == list(range(40))
    for batch in batches:
        assert batch["video"].shape == (4, 4, 3, 16, 16) and batch["video"].dtype == torch.uint8
        assert batch["label"].tolist() == [shards.clips[i].label for i in batch["index"].tolist()]
    whole = ShardDataset(shards, 4, train=False)[7]["video"]
    assert read_numbers(whole) == segment_indices(8, 4).tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_shard_batches_are_independent_of_workers(workers, shards):
    expected = loaded(ShardDataset(shards, 4, train=True, seed=5, draws=3), epoch=2)
    found = loaded(ShardDataset(shards, 4, train=True, seed=5, draws=3), epoch=2, workers=workers)
    assert len(found) == len(expected) == 10
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_order_depends_on_seed_and_epoch(shards):
    def order(seed, epoch):
        return indices(loaded(ShardDataset(shards, 2, train=True, seed=seed), epoch=epoch))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1) != order(0, 0)
    for seed, epoch in ((0, 0), (0, 1), (1, 1)):
        assert sorted(flat(order(seed, epoch))) == list(range(40))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skip", [1, 5, 9, 10])
def test_resume_within_an_epoch_of_shards(skip, workers, shards):
    whole = loaded(ShardDataset(shards, 3, train=True), epoch=1, workers=workers)
    rest = loaded(ShardDataset(shards, 3, train=True), epoch=1, skip=skip, workers=workers)
    assert indices(rest) == indices(whole)[skip:]
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(rest, whole[skip:], strict=True))
    with pytest.raises(ValueError, match=r"skip must be in 0\.\.10"):
        build_loader(ShardDataset(shards, 3, train=True), 4).set_epoch(0, skip=11)


@pytest.mark.parametrize(("world_size", "size"), [(2, 4), (3, 4), (3, 5)])
def test_ranks_have_different_clips(world_size, size, shards):
    def batches(train):
        ranks = ({"rank": rank, "world_size": world_size, "drop_last": train} for rank in range(world_size))
        return flat(indices(loaded(ShardDataset(shards, 2, train=train), size, **rank)) for rank in ranks)

    assert sorted(flat(batches(train=False))) == list(range(40))
    full = batches(train=True)
    assert len(full) == 40 // world_size // size * world_size
    assert {len(batch) for batch in full} == {size}
    assert len(set(flat(full))) == len(flat(full))


def test_shards_are_read_once_except_at_boundaries(shards, monkeypatch):
    loads: list[int] = []
    load = ShardDataset._load_shard
    monkeypatch.setattr(ShardDataset, "_load_shard", lambda self, shard: loads.append(shard) or load(self, shard))
    dataset = ShardDataset(shards, 2, train=True)
    loaded(dataset, 2)
    assert set(loads) == set(range(10)) and len(loads) <= 10 + LANES
    assert dataset._open_shards == {}


def test_cache_reads_each_shard_once(shards, monkeypatch):
    loads: list[int] = []
    load = ShardDataset._load_shard
    monkeypatch.setattr(ShardDataset, "_load_shard", lambda self, shard: loads.append(shard) or load(self, shard))
    dataset, plain = (ShardDataset(shards, 2, train=False, frame_size=16, cache=cache) for cache in (True, False))
    for _ in range(2):
        first = [dataset[i]["video"] for i in range(40)]
        assert loads == list(range(10)), "in order, and not again in the second epoch"
    assert all(torch.equal(first[i], plain[i]["video"]) for i in (0, 17, 39))


def test_unreadable_clips_are_replaced_within_the_shard(many, tmp_path, caplog):
    for i in (3, 17):
        many.clips[i].path.write_text("no video " * 20)
    many.clips[30].path.unlink()
    shards = write_shards(many, tmp_path / "shards", shard_bytes=4000)
    assert len(shards) == 39 and json.loads((tmp_path / "shards" / "train.json").read_text())["missing"] == 1
    bad = {i for i, clip in enumerate(shards) if int(clip.path.name) in (3, 17)}
    for workers in (0, 2):
        dataset = ShardDataset(shards, 2, train=True, max_failed_fraction=0.1)
        found = flat(indices(loaded(dataset, 4, workers=workers)))
        assert len(found) == 39 and not bad & set(found)
        assert {path.name for path in dataset.bad} == {"00000003", "00000017"}
        replacements = [i for i in found if found.count(i) > 1]
        assert {shards.shard_of[i] for i in replacements} <= {shards.shard_of[i] for i in bad}
        dataset = ShardDataset(shards, 2, train=False, max_failed_fraction=0.1)
        assert sorted(flat(indices(loaded(dataset, 4, workers=workers)))) == sorted(set(range(39)) - bad)
    with pytest.raises(DataError, match="more than max_failed_fraction=0 allows"):
        loaded(ShardDataset(shards, 2, train=False))


def test_truncated_and_missing_shards(shards):
    path = Path(shards.shards[2])
    content = path.read_bytes()
    whole = dict(read_shard(str(path)))
    reasons = set()
    for cut in range(len(content) // 2, len(content) // 2 + 3000, 250):
        path.write_bytes(content[:cut])
        dataset = ShardDataset(shards, 2, train=False, max_failed_fraction=0.2)
        found = flat(indices(loaded(dataset)))
        assert 1 <= len(dataset.bad) < 4 and len(found) + len(dataset.bad) == 40
        reasons |= set(dataset.bad.values())
        for key, clip in dataset._load_shard(2)[0].items():
            assert clip.files == whole[key].files, "clips are complete"
    assert all("train-000002.tar cannot be read: ReadError" in reason for reason in reasons), reasons
    Path(shards.shards[5]).unlink()
    dataset = ShardDataset(shards, 2, train=True, max_failed_fraction=0.2)
    assert len(dataset.bad) == 4 and set(dataset.bad.values()) == {f"its shard {shards.shards[5]} does not exist"}
    assert len(flat(indices(loaded(dataset)))) >= 36 - 3


def test_directories_of_frames(tmp_path, numbered, read_numbers):
    directory = tmp_path / "clips" / "one"
    directory.mkdir(parents=True)
    with av.open(str(numbered(tmp_path / "a.mp4", 6))) as container:
        for i, frame in enumerate(container.decode(video=0)):
            frame.to_image().save(directory / f"img_{i + 8}.png")
    clip_set = ClipSet("frames", "test", tmp_path / "clips", (Clip(directory, 0),), ("a",))
    shards = write_shards(clip_set, tmp_path / "out")
    video = ShardDataset(shards, 6, train=False)[0]["video"]
    assert read_numbers(video) == list(range(6))
    assert torch.equal(video, read_frames(directory))


def test_errors_of_writing_and_opening(many, tmp_path, numbered):
    out = tmp_path / "out"
    part = ClipSet("p", "train", tmp_path, (Clip(many.clips[0].path, 0, 0.0, 0.3),), ("a",))
    with pytest.raises(ValueError, match=r"is a part of a file, .* cut the clips into separate files first"):
        write_shards(part, out)
    with pytest.raises(ValueError, match="shard_bytes must be at least 1, got 0"):
        write_shards(many, out, shard_bytes=0)
    gone = ClipSet("p", "train", tmp_path, (Clip(tmp_path / "none.mp4", 0),), ("a",))
    with pytest.raises(ValueError, match="p/train: none of its 1 clip can be read"):
        write_shards(gone, out)
    assert not list(out.glob("*.json"))
    write_shards(many, out)
    with pytest.raises(FileExistsError, match=r"train\.json already exists"):
        write_shards(many, out)
    with pytest.raises(ValueError, match=r"the name of a shard is 'a/b-000000\.tar'"):
        write_shards(dataclasses.replace(many, split="a/b"), out)
    with pytest.raises(ValueError, match="out 'pipe:cat' is a command"):
        write_shards(many, "pipe:cat")
    with pytest.raises(FileNotFoundError, match=r"val\.json does not exist; splits in .*: train"):
        open_shards(out, "val")
    (out / "bad.json").write_text('{"format": "art shards 1", "name": "x"}')
    with pytest.raises(ValueError, match="is not a valid index of shards: KeyError"):
        open_shards(out, "bad")


def test_interruption_leaves_no_partial_shard(many, tmp_path, monkeypatch):
    read_files, calls = shards_module.read_files, []

    def stop(path):
        calls.append(path)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return read_files(path)

    monkeypatch.setattr(shards_module, "read_files", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shards(many, tmp_path / "out", shard_bytes=4000)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names and all(name.endswith(".tar") for name in names)


def test_read_clip_by_path(shards, many, tmp_path):
    clip = shards.clips[9]
    expected = read_clip(many.clips[int(clip.path.name)].path, 3)
    assert torch.equal(read_clip(clip.path, 3), expected)
    with pytest.raises(VideoError, match="not found in shard"):
        read_clip(clip.path.with_name("99999999"), 3)
    with pytest.raises(VideoError, match="is in a shard without an index"):
        read_clip(tmp_path / "test-000000.tar" / "00000000", 3)
    Path(shards.shards[shards.shard_of[9]]).unlink()
    with pytest.raises(VideoError, match=r"cannot be read: .*FileNotFoundError"):
        read_clip(clip.path, 3)


def test_shards_command(many, tmp_path, capsys, caplog):
    for split, first in (("train", 0), ("test", 30)):
        rows = "".join(f"{clip.path},{clip.label}\n" for clip in many.clips[first : first + 10])
        (tmp_path / f"{split}.csv").write_text("path,label\n" + rows)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    many.clips[32].path.unlink()
    arguments = ["shards", "csv", "--root", str(tmp_path), "--to", str(tmp_path / "out"), "--shard-mib", "0.004"]
    many.clips[33].path.write_text("no video")
    many.clips[34].path.write_bytes(b"")
    assert main([*arguments, "--splits", "train", "test"]) == 1
    shown, errors = capsys.readouterr()
    assert "test: 7 clips in" in shown and "3 could not be read" in shown and "data.name=shards" in shown
    assert all(f"{clip.path} is skipped: " in errors + caplog.text for clip in many.clips[32:35])
    assert dataset_splits("shards", tmp_path / "out") == ("test", "train")
    assert len(open_dataset("shards", tmp_path / "out", "train")) == 10
    assert main([*arguments, "--splits", "train"]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*arguments, "--splits", "train", "--url", "pipe:aws s3 cp s3://bucket/{} -"]) == 2
    assert "data.root=URL" in capsys.readouterr().err
    arguments[arguments.index("--to") + 1] = str(tmp_path / "more")
    assert main([*arguments, "--splits", "train", "--url", "s3://bucket/set"]) == 0
    assert f"copy {tmp_path / 'more'} to s3://bucket/set, and use them" in capsys.readouterr().out
