"""Batches of decoded clips."""

import logging

import pytest
import torch

from art.data.dataset import ClipDataset, DataError
from art.data.datasets.base import Clip, ClipSet
from art.data.loader import BatchOrder, build_loader


def content(loader, epoch):
    loader.set_epoch(epoch)
    return list(loader)


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in ("video", "label", "index")
    )


def test_batches_are_independent_of_workers(clip_set):
    alone, helped = (
        build_loader(ClipDataset(clip_set, 4, train=True, seed=3), 4, workers=workers) for workers in (0, 2)
    )
    first, second = content(alone, 0), content(alone, 1)
    assert same(first, content(helped, 0))
    assert same(second, content(helped, 1)), "persistent workers must use the new epoch"
    assert not same(first, second)
    assert same(first, content(helped, 0))


def test_epoch_contains_every_clip_once(clip_set):
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


def test_shuffle_and_drop_last(clip_set):
    dataset = ClipDataset(clip_set, 2, train=True)
    batches = list(build_loader(dataset, 4, shuffle=False, drop_last=True))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    evaluated = list(build_loader(ClipDataset(clip_set, 2, train=False), 16))
    assert [batch["index"].tolist() for batch in evaluated] == [list(range(10))]


def test_resume_within_an_epoch(clip_set):
    loader = build_loader(ClipDataset(clip_set, 2, train=True), 4)
    whole = content(loader, 2)
    loader.set_epoch(2, skip=1)
    assert len(loader) == 2
    assert same(whole[1:], list(loader))
    assert same(whole, content(loader, 2))
    with pytest.raises(ValueError, match=r"skip must be in 0\.\.3"):
        loader.set_epoch(2, skip=4)


@pytest.mark.parametrize("workers", [0, 2])
def test_clips_of_different_sizes(workers, tmp_path, numbered, clip_set):
    tall = numbered(tmp_path / "tall.mp4", size=(64, 32))
    mixed = ClipSet("mixed", "test", tmp_path, (*clip_set.clips[:1], Clip(tall, 1)), ("even", "odd"))
    loader = build_loader(ClipDataset(mixed, 2, train=False), 2, workers=workers)
    with pytest.raises(DataError, match=r"0\.mp4 \(64×32\) and .*tall\.mp4 \(32×64\)\. Set frame_size") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_first_failure_is_an_error_by_default(workers, clip_set, spoil):
    spoil(5)
    loader = build_loader(ClipDataset(clip_set, 2, train=True), 4, workers=workers)
    with pytest.raises(DataError, match=r"1 of 10 clips \(10.0%\) cannot be read, more than max_failed_fraction=0"):
        list(loader)
    assert list(loader.dataset.bad) == [clip_set.clips[5].path]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_clip_is_replaced_in_training(workers, clip_set, caplog, spoil):
    spoil(5, 6)
    loader = build_loader(ClipDataset(clip_set, 2, train=True, max_failed_fraction=0.2), 10, workers=workers)
    with caplog.at_level(logging.WARNING):
        (batch,) = content(loader, 0)
        content(loader, 1)
    assert sorted(batch["index"].tolist()) == [0, 1, 2, 3, 4, 7, 7, 7, 8, 9]
    assert batch["label"].tolist() == [i % 2 for i in batch["index"].tolist()]
    replacements = [video for video, index in zip(batch["video"], batch["index"], strict=True) if index == 7]
    assert not all(torch.equal(replacements[0], other) for other in replacements[1:])
    assert loader.dataset.bad.keys() == {clip_set.clips[5].path, clip_set.clips[6].path}
    assert "cannot be read: Invalid data" in loader.dataset.bad[clip_set.clips[5].path]
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2, "each failed clip is logged once"
    assert any(str(clip_set.clips[5].path) in text and "replaced by the next" in text for text in warned)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_clip_is_skipped_in_evaluation(workers, clip_set, caplog, spoil):
    spoil(0, 1, 5)
    loader = build_loader(ClipDataset(clip_set, 2, train=False, max_failed_fraction=0.3), 2, workers=workers)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert [batch["index"].tolist() for batch in batches] == [[2, 3], [4], [6, 7], [8, 9]]
    assert [path.name for path in loader.dataset.bad] == ["0.mp4", "1.mp4", "5.mp4"]
    assert "is skipped" in caplog.text


def test_training_without_any_readable_clip(clip_set, spoil):
    spoil(*range(10))
    with pytest.raises(DataError, match="so there is no clip to train on"):
        list(build_loader(ClipDataset(clip_set, 2, train=True, max_failed_fraction=1.0), 4))
    assert list(build_loader(ClipDataset(clip_set, 2, train=False, max_failed_fraction=1.0), 4)) == []


def of_rank(clip_set, rank, world_size, batch_size, *, train=True, **options):
    dataset = ClipDataset(clip_set, 4, train=train, seed=3, draws=5 if train else 0)
    return build_loader(dataset, batch_size, rank=rank, world_size=world_size, **options)


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 2), (4, 1)])
def test_batches_of_ranks_form_those_of_one_process(clip_set, world_size, batch_size):
    whole = of_rank(clip_set, 0, 1, 4, drop_last=True)
    parts = [of_rank(clip_set, rank, world_size, batch_size, drop_last=True) for rank in range(world_size)]
    for epoch in (0, 1):
        expected, shared = content(whole, epoch), [content(part, epoch) for part in parts]
        together = [
            {key: torch.cat([batch[key] for batch in step]) for key in step[0]} for step in zip(*shared, strict=True)
        ]
        assert same(together, expected)
        assert all(torch.equal(a["draws"], b["draws"]) for a, b in zip(together, expected, strict=True))
    parts[1].set_epoch(1, skip=1)
    assert same(list(parts[1]), shared[1][1:]), "a rank resumes in the middle of an epoch"


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 2), (3, 2), (4, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("train", [True, False])
def test_every_clip_is_on_one_rank(clip_set, world_size, batch_size, train):
    orders = [
        BatchOrder(ClipDataset(clip_set, 4, train=train), batch_size, train, False, rank, world_size)
        for rank in range(world_size)
    ]
    batches = [list(order) for order in orders]
    assert [len(own) for own in batches] == [len(order) for order in orders]
    assert all(1 <= len(batch) <= batch_size for own in batches for batch in own)
    indices = [index for own in batches for batch in own for _, index in batch]
    assert sorted(indices) == list(range(10))
    last = [len(own[-1]) for own in batches if len(own) == max(map(len, batches))]
    assert max(last) - min(last) <= 1, "the last batch is split evenly"


def test_rank_without_a_clip(clip_set):
    with pytest.raises(ValueError, match="leave a rank without a clip in the last step"):
        of_rank(clip_set, 0, 3, 3)
    with pytest.raises(ValueError, match=r"on 3 ranks with drop_last leaves no batch of 10 clips; expected at most 3"):
        of_rank(clip_set, 0, 3, 4, drop_last=True)
    assert [len(list(of_rank(clip_set, rank, 3, 3, train=False))) for rank in range(3)] == [1, 1, 2]


def test_random_numbers_depend_on_the_clip_only(clip_set):
    def drawn(batch_size, workers):
        loader, values = of_rank(clip_set, 0, 1, batch_size, workers=workers), {}
        for epoch in (0, 1):
            for batch in content(loader, epoch):
                draws = map(tuple, batch["draws"].tolist())
                values |= {(epoch, i): own for i, own in zip(batch["index"].tolist(), draws, strict=True)}
        return values

    first = drawn(4, 0)
    assert first == drawn(3, 2)
    assert len(first) == len(set(first.values())) == 20
    assert all(len(draws) == 5 and all(0 <= value < 1 for value in draws) for draws in first.values())
    other = ClipDataset(clip_set, 4, train=True, seed=4, draws=5)
    assert tuple(other[0]["draws"].tolist()) not in first.values()
    assert ClipDataset(clip_set, 4, train=False, draws=5)[0]["draws"].shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 4, "workers": -1}, "workers must be 0 or more, got -1"),
        ({"batch_size": 11, "drop_last": True}, "leaves no batch of 10 clips"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank is 2 of world_size 2"),
        ({"batch_size": 4, "rank": 0, "world_size": 0}, "rank is 0 of world_size 0"),
    ],
)
def test_invalid_arguments_of_the_loader(options, message, clip_set):
    with pytest.raises(ValueError, match=message):
        build_loader(ClipDataset(clip_set, 4, train=True), **options)
