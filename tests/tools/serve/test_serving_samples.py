import pytest

from art.data.motion.classes import CLASSES
from art.tools.serve.checking import check_clip
from art.tools.serve.limits import Limits


def test_the_samples_are_clips_of_the_embedded_data_set_and_small():
    pytest.importorskip("starlette", reason="the extra [serve] is not installed")
    from art.tools.serve.application import SAMPLES, sample_names

    assert {name.replace("_", " ") for name in sample_names()} < {one.name for one in CLASSES}
    for name in sample_names():
        check_clip(SAMPLES / f"{name}.mp4", Limits(seconds=2, frames=24, megapixels=112 * 112 / 1e6))
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) < 300_000
