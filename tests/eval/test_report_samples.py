from pathlib import Path

import numpy as np
import pytest
import torch
from blob_model import FRAMES, GRID, SIZE, BlobModel, blob_path, read_blob

from art.data.transforms.sampling import FrameSampling
from art.eval.report import samples as samples_module
from art.eval.report.samples import SampleClip, choose_clips, clip_reader, collect_samples
from art.model.pretrained import Query


def test_samples_are_correct_then_wrong_with_maps(blob_clips, blob_evaluation):
    chosen = collect_samples(BlobModel(), blob_clips, blob_evaluation, right=4, wrong=2, read=read_blob)
    assert [s.predicted == s.label for s in chosen] == [True] * 4 + [False] * 2
    assert sorted(s.label for s in chosen[:4]) == [0, 0, 1, 1], "from each class with correct predictions"
    for s in chosen:
        assert s.frames.shape == (FRAMES, SIZE, SIZE, 3)
        assert s.maps.shape == (FRAMES, 2, GRID, GRID) and s.saliency.shape == (FRAMES, 2)
        assert [query.label for query in s.queries] == [0, 1]
        assert s.probabilities.sum() == pytest.approx(1.0)
        np.testing.assert_array_equal(s.frames, read_blob(s).permute(0, 2, 3, 1).numpy())


def test_clips_are_found_by_index(blob_clips, blob_evaluation):
    """The evaluation lacks clip 0, so rows and indices differ by one."""
    chosen = collect_samples(BlobModel(), blob_clips, blob_evaluation, right=20, wrong=20, read=read_blob)
    assert len(chosen) == 11
    assert {str(s.path) for s in chosen} == {f"/clips/{i:02d}.mp4" for i in range(1, 12)}
    assert all(int(s.path.stem) % 3 == s.label for s in chosen)


def test_choice_depends_on_the_seed_only(blob_evaluation):
    first, again, other = (choose_clips(blob_evaluation, right=5, wrong=2, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len(set(first[0])) == 5 and len(set(first[1])) == 2
    right, wrong = choose_clips(blob_evaluation, right=100, wrong=0, seed=0)
    assert len(right) == 7 and wrong == []


def test_model_mode_is_restored_and_there_are_no_gradients(blob_clips, blob_evaluation):
    model = BlobModel().train()
    collect_samples(model, blob_clips, blob_evaluation, right=1, wrong=1, read=read_blob)
    assert model.training and set(model.modes) == {(False, False)}


def test_backbone_has_no_maps(blob_clips, blob_evaluation):
    (sample,) = collect_samples(BlobModel("backbone"), blob_clips, blob_evaluation, right=1, wrong=0, read=read_blob)
    assert sample.maps is None and sample.saliency is None and sample.queries is None


def test_limbs_of_clips(blob_clips, blob_evaluation):
    def limb(clip):
        return blob_path(clip.label) if clip.label == 1 else None

    chosen = collect_samples(BlobModel(), blob_clips, blob_evaluation, right=4, wrong=1, limb=limb, read=read_blob)
    for s in chosen:
        assert (s.joints is not None) == (s.label == 1)


def test_clip_reader_uses_the_sampling_of_the_model(monkeypatch, blob_clips):
    calls = []

    def fake(path, num_frames, *, start, end, sampling):
        calls.append((path, num_frames, start, end, sampling))
        return torch.arange(num_frames, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 40, 64).contiguous()

    monkeypatch.setattr(samples_module, "read_clip", fake)
    model = BlobModel()
    model.sampling = FrameSampling("dense", 2)
    video = clip_reader(model)(blob_clips.clips[1])
    assert calls == [(Path("/clips/01.mp4"), FRAMES, None, None, FrameSampling("dense", 2))]
    assert video.shape == (FRAMES, 3, SIZE, SIZE) and video.dtype == torch.uint8
    assert video[:, 0, 0, 0].tolist() == list(range(FRAMES))


def test_invalid_arguments(blob_clips, blob_evaluation):
    with pytest.raises(ValueError, match="wrong is -1"):
        collect_samples(BlobModel(), blob_clips, blob_evaluation, wrong=-1, read=read_blob)
    blob_evaluation.indices[-1] = 12
    with pytest.raises(ValueError, match="pass the clip set that was evaluated"):
        collect_samples(BlobModel(), blob_clips, blob_evaluation, read=read_blob)


IMAGES = np.zeros((4, 8, 8, 3), dtype=np.uint8)
MAPS = {"maps": np.ones((4, 2, 3, 3)), "saliency": np.ones((4, 2)), "queries": (Query("a", 0), Query("b", 1))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": IMAGES[..., :1]}, r"expected uint8 \[T, H, W, 3\]"),
        ({"frames": IMAGES.astype(np.float32)}, "float32"),
        ({"label": 3}, "label is 3"),
        ({"joints": np.zeros((3, 2))}, r"expected \(4, 2\)"),
        ({"saliency": None}, "belong together"),
        ({"maps": np.ones((4, 1, 3, 3))}, r"expected \[4, 2, h, w\]"),
        ({"saliency": np.ones((5, 2))}, r"\(5, 2\)"),
    ],
)
def test_sample_checks_its_shapes(change, message):
    good = {"path": Path("a.mp4"), "frames": IMAGES, "label": 1, "probabilities": np.array([0.2, 0.5, 0.3]), **MAPS}
    assert SampleClip(**good).predicted == 1
    with pytest.raises(ValueError, match=message):
        SampleClip(**{**good, **change})
