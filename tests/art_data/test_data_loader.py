import logging
from pathlib import Path

import pytest
import torch

from art.data.clips import Clip, ClipSet
from art.data.dataset import ClipDataset, DataError, build_loader


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


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_of_different_sizes_are_named(workers, tmp_path, numbered, clip_set):
    tall = numbered(tmp_path / "tall.mp4", size=(64, 32))
    mixed = ClipSet("mixed", "test", tmp_path, (*clip_set.clips[:1], Clip(tall, 1)), ("even", "odd"))
    loader = build_loader(ClipDataset(mixed, 2, train=False), 2, workers=workers)
    with pytest.raises(DataError, match=r"0\.mp4 \(64×32\) and .*tall\.mp4 \(32×64\)\. Give frame_size") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_bad_clip_stops_unless_allowed(workers, clip_set, spoil):
    spoil(5)
    loader = build_loader(ClipDataset(clip_set, 2, train=True), 4, workers=workers)
    with pytest.raises(DataError, match=r"1 of 10 clips \(10.0%\) cannot be read, more than max_bad_share=0 allows"):
        list(loader)
    assert list(loader.dataset.bad) == [clip_set.clips[5].path]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_clip_is_replaced_in_training(workers, clip_set, caplog, spoil):
    spoil(5, 6)
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
def test_a_bad_clip_is_left_out_in_evaluation(workers, clip_set, caplog, spoil):
    spoil(0, 1, 5)
    loader = build_loader(ClipDataset(clip_set, 2, train=False, max_bad_share=0.3), 2, workers=workers)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert [batch["index"].tolist() for batch in batches] == [[2, 3], [4], [6, 7], [8, 9]]
    assert [path.name for path in loader.dataset.bad] == ["0.mp4", "1.mp4", "5.mp4"]
    assert "is left out" in caplog.text


def test_training_on_nothing_is_an_error_whatever_is_allowed(clip_set, spoil):
    spoil(*range(10))
    with pytest.raises(DataError, match="so that none is left to train on"):
        list(build_loader(ClipDataset(clip_set, 2, train=True, max_bad_share=1.0), 4))
    assert list(build_loader(ClipDataset(clip_set, 2, train=False, max_bad_share=1.0), 4)) == []


def test_paths_of_bad_clips_are_paths(clip_set, spoil):
    spoil(0)
    dataset = ClipDataset(clip_set, 4, train=False, max_bad_share=0.1)
    list(build_loader(dataset, 4))
    assert all(isinstance(path, Path) for path in dataset.bad)


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
