import logging
import pickle
from pathlib import Path

import pytest
import torch

from art.data import dataset as dataset_module
from art.data.cache import CACHED_CLIP_LIMIT
from art.data.clips import Clip, ClipSet, segment_indices
from art.data.dataset import ClipDataset, DataError, build_loader, check_clip_set


@pytest.fixture
def clip_set(tmp_path, numbered):
    """Ten clips of 24 frames and, in alternation, two classes."""
    source = numbered(tmp_path / "source.mp4", options={"bf": "0"})
    clips = []
    for i in range(10):
        path = tmp_path / f"{i}.mp4"
        path.write_bytes(source.read_bytes())
        clips.append(Clip(path, i % 2))
    return ClipSet("numbers", "train", tmp_path, tuple(clips), ("even", "odd"))


def spoil(clip_set, *indices):
    for index in indices:
        clip_set.clips[index].path.write_text("no video " * 20)


def test_a_training_sample(clip_set, read_numbers):
    dataset = ClipDataset(clip_set, 8, train=True)
    sample = dataset[3]
    assert sample["video"].shape == (8, 3, 32, 64)
    assert (sample["label"], sample["index"]) == (1, 3)
    for segment, number in enumerate(read_numbers(sample["video"])):
        assert number // 3 == segment


def test_a_test_sample_is_always_the_centres(clip_set, read_numbers):
    dataset = ClipDataset(clip_set, 8, train=False)
    first = dataset[3]["video"]
    assert read_numbers(first) == segment_indices(24, 8).tolist()
    dataset.set_epoch(1)
    assert torch.equal(dataset[3]["video"], first)
    assert torch.equal(ClipDataset(clip_set, 8, train=False, seed=5)[3]["video"], first)


def test_a_training_sample_depends_on_seed_epoch_and_index(clip_set, read_numbers):
    def sampled(seed, epoch, index):
        dataset = ClipDataset(clip_set, 8, train=True, seed=seed)
        dataset.set_epoch(epoch)
        return tuple(read_numbers(dataset[index]["video"]))

    assert sampled(0, 0, 0) == sampled(0, 0, 0)
    assert len({sampled(0, 0, 0), sampled(1, 0, 0), sampled(0, 1, 0), sampled(0, 0, 1)}) == 4


def test_a_data_set_can_be_listed(clip_set):
    dataset = ClipDataset(clip_set, 2, train=False)
    assert len(dataset) == 10
    assert [sample["index"] for sample in dataset] == list(range(10))
    assert dataset[-1]["index"] == 9


def content(loader, epoch):
    loader.set_epoch(epoch)
    return list(loader)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in ("video", "label", "index")
    )


def test_workers_do_not_change_a_batch(clip_set):
    alone, helped = (
        build_loader(ClipDataset(clip_set, 4, train=True, seed=3), 4, workers=workers) for workers in (0, 2)
    )
    first, second = content(alone, 0), content(alone, 1)
    assert same(first, content(helped, 0))
    assert same(second, content(helped, 1)), "workers that live on must hear of the new epoch"
    assert not same(first, second)
    assert same(first, content(helped, 0))


def test_an_epoch_holds_every_clip_once(clip_set):
    loader = build_loader(ClipDataset(clip_set, 2, train=True), 4)
    batches = content(loader, 0)
    assert [len(batch["index"]) for batch in batches] == [4, 4, 2]
    assert len(loader) == 3
    order = torch.cat([batch["index"] for batch in batches]).tolist()
    assert sorted(order) == list(range(10))
    assert order != list(range(10))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [i % 2 for i in order]
    assert batches[0]["video"].dtype == torch.uint8
    assert batches[0]["label"].dtype == batches[0]["index"].dtype == torch.int64


def test_order_and_size_can_be_chosen(clip_set):
    dataset = ClipDataset(clip_set, 2, train=True)
    batches = list(build_loader(dataset, 4, shuffle=False, drop_last=True))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    evaluated = list(build_loader(ClipDataset(clip_set, 2, train=False), 16))
    assert [batch["index"].tolist() for batch in evaluated] == [list(range(10))]


def test_an_interrupted_epoch_goes_on(clip_set):
    loader = build_loader(ClipDataset(clip_set, 2, train=True), 4)
    whole = content(loader, 2)
    loader.set_epoch(2, skip=1)
    assert len(loader) == 2
    assert same(whole[1:], list(loader))
    assert same(whole, content(loader, 2))
    with pytest.raises(ValueError, match=r"skip must lie in 0\.\.3"):
        loader.set_epoch(2, skip=4)


def test_cached_clips_are_the_same_and_decoded_once(clip_set, monkeypatch):
    cached = ClipDataset(clip_set, 5, train=True, cache=True)
    plain = ClipDataset(clip_set, 5, train=True)
    before = [cached[i]["video"] for i in range(10)]
    assert all(torch.equal(video, plain[i]["video"]) for i, video in enumerate(before))
    cached.set_epoch(1)
    plain.set_epoch(1)
    after = [plain[i]["video"] for i in range(10)]
    for clip in clip_set:
        clip.path.unlink()
    assert all(torch.equal(cached[i]["video"], video) for i, video in enumerate(after))


def test_a_full_cache_says_so_and_goes_on(clip_set, caplog, read_numbers):
    one_clip = 24 * 3 * 32 * 64
    dataset = ClipDataset(clip_set, 5, train=False, cache=True, cache_limit=2 * one_clip)
    with caplog.at_level(logging.WARNING):
        numbers = [read_numbers(dataset[i]["video"]) for i in range(10)]
    assert numbers == [segment_indices(24, 5).tolist()] * 10
    assert len(caplog.records) == 1
    assert f"does not take clip {clip_set.clips[2].path}" in caplog.text
    assert one_clip < CACHED_CLIP_LIMIT
    with pytest.raises(ValueError, match="cache_limit must be 0 bytes or more, got -1"):
        ClipDataset(clip_set, 5, train=False, cache=True, cache_limit=-1)


def test_frame_size_makes_squares(tmp_path, numbered, clip_set):
    tall = numbered(tmp_path / "tall.mp4", size=(64, 32))
    mixed = ClipSet("mixed", "train", tmp_path, (*clip_set.clips[:1], Clip(tall, 1)), ("even", "odd"))
    for train in (True, False):
        batch = next(iter(build_loader(ClipDataset(mixed, 3, train=train, frame_size=16), 2)))
        assert batch["video"].shape == (2, 3, 3, 16, 16)
    plain = ClipDataset(mixed, 3, train=False)[0]["video"]
    assert torch.equal(ClipDataset(mixed, 3, train=False, frame_size=32)[0]["video"], plain[..., 16:48])


def test_the_square_moves_in_training_only(clip_set, tmp_path):
    wide = torch.arange(60).expand(2, 3, 20, 60).to(torch.uint8)
    starts = {
        int(dataset_module._square(wide, 20, torch.Generator().manual_seed(seed))[0, 0, 0, 0]) for seed in range(300)
    }
    assert starts == set(range(41))
    assert torch.equal(dataset_module._square(wide, 20, None), wide[..., 20:40])
    tall = wide.transpose(2, 3)
    assert torch.equal(dataset_module._square(tall, 20, None), tall[:, :, 20:40])


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_of_different_sizes_are_named(workers, tmp_path, numbered, clip_set):
    tall = numbered(tmp_path / "tall.mp4", size=(64, 32))
    mixed = ClipSet("mixed", "test", tmp_path, (*clip_set.clips[:1], Clip(tall, 1)), ("even", "odd"))
    loader = build_loader(ClipDataset(mixed, 2, train=False), 2, workers=workers)
    with pytest.raises(DataError, match=r"0\.mp4 \(64×32\) and .*tall\.mp4 \(32×64\)\. Give frame_size") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)


def test_missing_and_empty_files_are_found_first(clip_set):
    assert check_clip_set(clip_set) == {}
    clip_set.clips[2].path.unlink()
    clip_set.clips[7].path.write_bytes(b"")
    assert check_clip_set(clip_set) == {2: "there is no such file", 7: "is empty (0 bytes)"}
    with pytest.raises(DataError, match=r"numbers/train: 2 of 10 clips \(20.0%\) cannot be read") as caught:
        ClipDataset(clip_set, 4, train=True, max_bad_share=0.1)
    assert f"{clip_set.clips[2].path}: there is no such file" in str(caught.value)
    assert f"{clip_set.clips[7].path}: is empty (0 bytes)" in str(caught.value)
    dataset = ClipDataset(clip_set, 4, train=True, max_bad_share=0.2)
    assert [path.name for path in dataset.bad] == ["2.mp4", "7.mp4"]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_bad_clip_stops_unless_allowed(workers, clip_set):
    spoil(clip_set, 5)
    loader = build_loader(ClipDataset(clip_set, 2, train=True), 4, workers=workers)
    with pytest.raises(DataError, match=r"1 of 10 clips \(10.0%\) cannot be read, more than max_bad_share=0 allows"):
        list(loader)
    assert list(loader.dataset.bad) == [clip_set.clips[5].path]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_clip_is_replaced_in_training(workers, clip_set, caplog):
    spoil(clip_set, 5, 6)
    loader = build_loader(ClipDataset(clip_set, 2, train=True, max_bad_share=0.2), 10, workers=workers)
    with caplog.at_level(logging.WARNING):
        (batch,) = content(loader, 0)
        content(loader, 1)
    assert sorted(batch["index"].tolist()) == [0, 1, 2, 3, 4, 7, 7, 7, 8, 9]
    assert batch["label"].tolist() == [i % 2 for i in batch["index"].tolist()]
    stood_in = [video for video, index in zip(batch["video"], batch["index"], strict=True) if index == 7]
    assert not all(torch.equal(stood_in[0], other) for other in stood_in[1:])
    assert loader.dataset.bad.keys() == {clip_set.clips[5].path, clip_set.clips[6].path}
    assert "cannot be read: Invalid data" in loader.dataset.bad[clip_set.clips[5].path]
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2, "each bad clip is named once"
    assert any(str(clip_set.clips[5].path) in text and "replaced by the next" in text for text in warned)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_clip_is_left_out_in_evaluation(workers, clip_set, caplog):
    spoil(clip_set, 0, 1, 5)
    loader = build_loader(ClipDataset(clip_set, 2, train=False, max_bad_share=0.3), 2, workers=workers)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert [batch["index"].tolist() for batch in batches] == [[2, 3], [4], [6, 7], [8, 9]]
    assert [path.name for path in loader.dataset.bad] == ["0.mp4", "1.mp4", "5.mp4"]
    assert "is left out" in caplog.text


def test_asking_for_a_bad_clip(clip_set):
    spoil(clip_set, 5)
    assert ClipDataset(clip_set, 2, train=True, max_bad_share=0.1)[5]["index"] == 6
    with pytest.raises(DataError, match=r"clip .*5\.mp4 cannot be read: "):
        ClipDataset(clip_set, 2, train=False, max_bad_share=0.1)[5]


def test_training_on_nothing_is_an_error_whatever_is_allowed(clip_set):
    spoil(clip_set, *range(10))
    with pytest.raises(DataError, match="so that none is left to train on"):
        list(build_loader(ClipDataset(clip_set, 2, train=True, max_bad_share=1.0), 4))
    assert list(build_loader(ClipDataset(clip_set, 2, train=False, max_bad_share=1.0), 4)) == []


def test_a_long_list_is_cut(tmp_path):
    clips = tuple(Clip(tmp_path / f"{i}.mp4", 0) for i in range(25))
    with pytest.raises(DataError, match="and 15 more"):
        ClipDataset(ClipSet("gone", "test", tmp_path, clips, ("a",)), 2, train=False)


@pytest.mark.parametrize(
    "options", [{"num_frames": 0}, {"seed": -1}, {"frame_size": 0}, {"max_bad_share": 1.5}, {"max_bad_share": -0.1}]
)
def test_impossible_arguments_of_the_data_set(options, clip_set):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must"):
        ClipDataset(clip_set, **{"num_frames": 4, "train": True, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4, "workers": -1}, "workers must be 0 or more, got -1"),
        ({"batch_size": 11, "drop_last": True}, "leaves no batch of 10 clips"),
    ],
)
def test_impossible_arguments_of_the_loader(options, message, clip_set):
    with pytest.raises(ValueError, match=message):
        build_loader(ClipDataset(clip_set, 4, train=True), **options)


def test_paths_of_bad_clips_are_paths(clip_set):
    spoil(clip_set, 0)
    dataset = ClipDataset(clip_set, 4, train=False, max_bad_share=0.1)
    list(build_loader(dataset, 4))
    assert all(isinstance(path, Path) for path in dataset.bad)


def test_a_data_set_can_be_sent_to_another_process(clip_set):
    dataset = ClipDataset(clip_set, 4, train=True, seed=2, cache=True)
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3]["video"], dataset[3]["video"])
