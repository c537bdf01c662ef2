"""Frame sampling."""

import pytest
import torch

from art.data.transforms.sampling import FrameSampling, dense_indices, segment_indices


@pytest.mark.parametrize("count", [1, 3, 15, 16, 17, 24, 49, 300])
@pytest.mark.parametrize("num_frames", [1, 3, 8, 16])
def test_segment_centers(count, num_frames):
    expected = [int((t + 0.5) * count / num_frames + 1e-9) for t in range(num_frames)]
    assert segment_indices(count, num_frames).tolist() == expected


@pytest.mark.parametrize("count", [1, 3, 16, 17, 24, 49])
def test_random_positions_stay_in_their_segments(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        indices = segment_indices(count, 16, generator)
        for t, index in enumerate(indices.tolist()):
            assert int(t * count / 16) <= index <= (t + 1) * count / 16
            assert 0 <= index < count
        assert (indices.diff() >= 0).all()
    assert {i for _ in range(200) for i in segment_indices(24, 8, generator).tolist()} == set(range(24)), "all are used"


@pytest.mark.parametrize(("count", "num_frames", "views"), [(24, 4, 3), (7, 4, 2), (300, 16, 5), (2, 4, 3)])
def test_sparse_views(count, num_frames, views):
    indices = FrameSampling().indices(count, num_frames, views=views)
    assert indices.shape == (views, num_frames)
    assert (indices.diff(dim=1) >= 0).all(), "each view is ascending"
    assert sorted(indices.flatten().tolist()) == segment_indices(count, num_frames * views).tolist()
    for t in range(num_frames):
        assert t * count // num_frames <= int(indices[:, t].min())
        assert int(indices[:, t].max()) <= (t + 1) * count // num_frames


def test_single_view_is_centered():
    assert FrameSampling().indices(24, 4).tolist() == [[3, 9, 15, 21]]
    assert FrameSampling("dense", 2).indices(24, 4).tolist() == [[9, 11, 13, 15]]


@pytest.mark.parametrize(("num_frames", "stride"), [(4, 1), (8, 2), (3, 5), (16, 4)])
def test_window_as_long_as_the_clip(num_frames, stride):
    count = num_frames * stride
    assert torch.equal(dense_indices(count, num_frames, stride)[0], segment_indices(count, num_frames))


def test_dense_views():
    # Windows of 8 of 28 frames start at 0..20; three of them are in the middle of each third of this range.
    assert dense_indices(28, 4, 2, views=3)[:, 0].tolist() == [3 + 1, 10 + 1, 17 + 1]
    assert (dense_indices(28, 4, 2, views=3).diff(dim=1) == 2).all()


def test_random_windows():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([dense_indices(28, 4, 2, generator=generator) for _ in range(400)])
    assert (drawn.diff(dim=1) == 2).all()
    assert set(drawn[:, 0].tolist()) == {start + 1 for start in range(21)}


def test_clip_shorter_than_the_window():
    assert dense_indices(5, 4, 2).tolist() == [[1, 3, 4, 4]]
    assert dense_indices(1, 3, 4, views=2).tolist() == [[0, 0, 0]] * 2
    assert dense_indices(5, 4, 2, generator=torch.Generator()).tolist() == [[1, 3, 4, 4]]


def test_random_view_of_each_kind():
    sparse = FrameSampling().indices(300, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sparse[0], segment_indices(300, 16, torch.Generator().manual_seed(1)))
    dense = FrameSampling("dense", 3).indices(300, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(dense, dense_indices(300, 16, 3, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: segment_indices(0, 4), "count must be at least 1, got 0"),
        (lambda: segment_indices(4, 0), "num_frames must be at least 1, got 0"),
        (lambda: dense_indices(0, 4, 1), "count must be at least 1, got 0"),
        (lambda: FrameSampling("uniform"), "sampling is 'uniform', expected 'sparse' or 'dense'"),
        (lambda: FrameSampling("dense", 0), "stride must be at least 1, got 0"),
        (lambda: FrameSampling("sparse", 2), "stride is 2, but only dense sampling has a stride"),
        (lambda: FrameSampling().indices(24, 4, views=0), "views must be at least 1, got 0"),
        (lambda: FrameSampling().indices(24, 4, views=2, generator=torch.Generator()), "views is 2 with a generator"),
    ],
)
def test_invalid_arguments_of_sampling(call, message):
    with pytest.raises(ValueError, match=message):
        call()
