import logging

import pytest
import torch

from art.data.loading.cache import CACHED_CLIP_LIMIT
from art.data.loading.dataset import ClipDataset
from art.data.transforms.sampling import segment_indices


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
