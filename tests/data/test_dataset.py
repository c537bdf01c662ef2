"""Clips as a PyTorch dataset, and the cache of decoded clips."""

import itertools
import logging
import pickle

import pytest
import torch

from art.data.dataset import CACHED_CLIP_LIMIT, ClipDataset, DataError, _crop_square, check_clip_set
from art.data.datasets.base import Clip, ClipSet
from art.data.decoding.video import read_clip
from art.data.loader import build_loader
from art.data.transforms.sampling import FrameSampling, segment_indices


def test_training_sample(clip_set, read_numbers):
    dataset = ClipDataset(clip_set, 8, train=True)
    sample = dataset[3]
    assert sample["video"].shape == (8, 3, 32, 64)
    assert (sample["label"], sample["index"]) == (1, 3)
    for segment, number in enumerate(read_numbers(sample["video"])):
        assert number // 3 == segment


def test_evaluation_sample_uses_segment_centers(clip_set, read_numbers):
    dataset = ClipDataset(clip_set, 8, train=False)
    assert [sample["index"] for sample in dataset] == list(range(len(dataset))) == list(range(10))
    first = dataset[-7]["video"]
    assert read_numbers(first) == segment_indices(24, 8).tolist()
    dataset.set_epoch(1)
    assert torch.equal(dataset[3]["video"], first)
    assert torch.equal(ClipDataset(clip_set, 8, train=False, seed=5)[3]["video"], first)


def test_training_sample_depends_on_seed_epoch_and_index(clip_set, read_numbers):
    def sampled(seed, epoch, index):
        dataset = ClipDataset(clip_set, 8, train=True, seed=seed)
        dataset.set_epoch(epoch)
        return tuple(read_numbers(dataset[index]["video"]))

    assert sampled(0, 0, 0) == sampled(0, 0, 0)
    assert len({sampled(0, 0, 0), sampled(1, 0, 0), sampled(0, 1, 0), sampled(0, 0, 1)}) == 4


@pytest.mark.parametrize("cache", [False, True])
def test_dense_sampling_and_views(clip_set, read_numbers, cache):
    sampling = FrameSampling("dense", 3)
    train = ClipDataset(clip_set, 4, train=True, sampling=sampling, cache=cache)
    numbers = [read_numbers(train[index]["video"]) for index in range(10)]
    assert all([b - a for a, b in itertools.pairwise(drawn)] == [3] * 3 for drawn in numbers)
    assert len({drawn[0] for drawn in numbers}) > 1
    test = ClipDataset(clip_set, 4, train=False, sampling=sampling, views=2, cache=cache)
    assert read_numbers(test[0]["video"]) == sampling.indices(24, 4, views=2).flatten().tolist()


@pytest.mark.parametrize("frame_size", [None, 16])
def test_three_crops(tmp_path, numbered, clip_set, frame_size):
    tall = numbered(tmp_path / "tall.mp4", size=(64, 32))
    for clip, axis in ((clip_set.clips[0], 3), (Clip(tall, 1), 2)):
        one = ClipSet("one", "test", tmp_path, (clip,), ("even", "odd"))
        cut = ClipDataset(one, 2, train=False, views=2, crops=3, frame_size=frame_size)[0]["video"]
        side = frame_size or 32
        assert cut.shape == (3 * 2 * 2, 3, side, side)
        whole = read_clip(clip.path, 2, views=2, short_side=frame_size)
        for place, square in zip((0, side // 2, side), cut.split(4), strict=True):
            assert torch.equal(square, whole.narrow(axis, place, side))
        middle = ClipDataset(one, 2, train=False, views=2, frame_size=side)[0]["video"]
        assert torch.equal(cut[4:8], middle), "the center square equals the single crop"


def test_frame_size(tmp_path, numbered, clip_set):
    tall = numbered(tmp_path / "tall.mp4", size=(64, 32))
    mixed = ClipSet("mixed", "train", tmp_path, (*clip_set.clips[:1], Clip(tall, 1)), ("even", "odd"))
    for train in (True, False):
        batch = next(iter(build_loader(ClipDataset(mixed, 3, train=train, frame_size=16), 2)))
        assert batch["video"].shape == (2, 3, 3, 16, 16)
    plain = ClipDataset(mixed, 3, train=False)[0]["video"]
    assert torch.equal(ClipDataset(mixed, 3, train=False, frame_size=32)[0]["video"], plain[..., 16:48])


def test_square_crop_is_random_in_training_only():
    wide = torch.arange(60).expand(2, 3, 20, 60).to(torch.uint8)
    starts = {int(_crop_square(wide, 20, torch.Generator().manual_seed(seed))[0, 0, 0, 0]) for seed in range(300)}
    assert starts == set(range(41))
    assert torch.equal(_crop_square(wide, 20, None), wide[..., 20:40])
    assert torch.equal(_crop_square(wide.transpose(2, 3), 20, None), wide.transpose(2, 3)[:, :, 20:40])


def test_missing_and_empty_files(clip_set):
    assert check_clip_set(clip_set) == {}
    clip_set.clips[2].path.unlink()
    clip_set.clips[7].path.write_bytes(b"")
    assert check_clip_set(clip_set) == {2: "there is no such file", 7: "is empty (0 bytes)"}
    with pytest.raises(DataError, match=r"numbers/train: 2 of 10 clips \(20.0%\) cannot be read") as caught:
        ClipDataset(clip_set, 4, train=True, max_failed_fraction=0.1)
    assert f"{clip_set.clips[2].path}: there is no such file" in str(caught.value)
    assert f"{clip_set.clips[7].path}: is empty (0 bytes)" in str(caught.value)
    dataset = ClipDataset(clip_set, 4, train=True, max_failed_fraction=0.2)
    assert [path.name for path in dataset.bad] == ["2.mp4", "7.mp4"]


def test_unreadable_clip(clip_set, spoil):
    spoil(5)
    assert ClipDataset(clip_set, 2, train=True, max_failed_fraction=0.1)[5]["index"] == 6
    with pytest.raises(DataError, match=r"clip .*5\.mp4 cannot be read: "):
        ClipDataset(clip_set, 2, train=False, max_failed_fraction=0.1)[5]


def test_long_failure_report_is_truncated(tmp_path):
    clips = tuple(Clip(tmp_path / f"{i}.mp4", 0) for i in range(25))
    with pytest.raises(DataError, match="and 15 more"):
        ClipDataset(ClipSet("gone", "test", tmp_path, clips, ("a",)), 2, train=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames must"),
        ({"seed": -1}, "seed must"),
        ({"frame_size": 0}, "frame_size must"),
        ({"max_failed_fraction": 1.5}, "max_failed_fraction must"),
        ({"max_failed_fraction": -0.1}, "max_failed_fraction must"),
        ({"views": 0}, "views must"),
        ({"crops": 2}, "crops must"),
        ({"draws": -1}, "draws must"),
        ({"cache": True, "cache_limit": -1}, "cache_limit must be 0 bytes or more, got -1"),
        ({"views": 2}, "views is 2 and crops is 1, expected 1 each in training"),
        ({"crops": 3}, "views is 1 and crops is 3, expected 1 each in training"),
    ],
)
def test_invalid_arguments(options, message, clip_set):
    with pytest.raises(ValueError, match=message):
        ClipDataset(clip_set, **{"num_frames": 4, "train": True, **options})


def test_pickle(clip_set):
    dataset = ClipDataset(clip_set, 4, train=True, seed=2, cache=True)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["video"], dataset[3]["video"])


def test_cache_decodes_once(clip_set):
    cached, plain = (ClipDataset(clip_set, 5, train=True, cache=cache) for cache in (True, False))
    assert all(torch.equal(cached[i]["video"], plain[i]["video"]) for i in range(10))
    cached.set_epoch(1)
    plain.set_epoch(1)
    after = [plain[i]["video"] for i in range(10)]
    for clip in clip_set:
        clip.path.unlink()
    assert all(torch.equal(cached[i]["video"], video) for i, video in enumerate(after))


def test_full_cache(clip_set, caplog, read_numbers):
    one_clip = 24 * 3 * 32 * 64
    dataset = ClipDataset(clip_set, 5, train=False, cache=True, cache_limit=2 * one_clip)
    with caplog.at_level(logging.WARNING):
        numbers = [read_numbers(dataset[i]["video"]) for i in range(10)]
    assert numbers == [segment_indices(24, 5).tolist()] * 10
    assert len(caplog.records) == 1
    assert f"clip {clip_set.clips[2].path} does not fit in the cache" in caplog.text
    assert one_clip < CACHED_CLIP_LIMIT
