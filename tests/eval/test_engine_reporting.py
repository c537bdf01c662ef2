import json

import numpy as np
import pytest
import torch

from art.data.datasets.clips import Clip, ClipSet
from art.data.loading.shards import write_shards
from art.eval.reporting import defining_limb
from art.model.pretrained import build_model
from art.train.batches import open_split
from art.train.loop import train

NAMES = ["walk", "kick with the right leg"]


@pytest.fixture
def motion(tmp_path):
    """Two clips of three frames of 40 pixels, whose right ankle wanders from the centre to the lower right."""
    ankle = [[0.5, 0.5], [0.75, 0.75], [0.95, 0.95]]
    clips = {f"clips/test/{name}.mp4": [[[0.1, 0.1], place] for place in ankle] for name in "ab"}
    (tmp_path / "joints.json").write_text(json.dumps({"names": ["neck", "right_ankle"], "clips": clips}))
    (tmp_path / "dataset.json").write_text(json.dumps({"size": 40}))
    own = [Clip(tmp_path / path, label) for label, path in enumerate(clips)]
    return ClipSet("motion", "test", tmp_path, own, NAMES)


@pytest.mark.parametrize(("share", "expected"), [(1.0, [0.5, 0.75, 0.95]), (0.5, [0.5, 1.0, 1.4])])
def test_the_limb_is_marked_where_the_crop_shows_it(motion, configured, tmp_path, share, expected):
    torch.manual_seed(0)
    model = build_model("backbone", NAMES, configured(tmp_path, f"model.test_crop={share}").model)
    limb = defining_limb(motion, model)
    assert limb(motion.clips[0]) is None, "nothing tells a walk from its neighbours"
    np.testing.assert_allclose(limb(motion.clips[1]), np.stack([expected] * 2, axis=1))


def test_a_report_shows_the_clips_of_confused_pairs_where_they_are_at_hand(configured, clips, tmp_path):
    pytest.importorskip("webdataset")
    for split in ("train", "test"):
        write_shards(open_split(configured(tmp_path), split), tmp_path / "shards")
    pages = {}
    for name, root in (("csv", clips), ("shards", tmp_path / "shards")):
        overrides = [f"data.name={name}", f"data.root={root}", "report=true", "optim.epochs=1", "kind=art"]
        result = train(configured(tmp_path / name, *overrides))
        pages[name] = (tmp_path / name / "report.html").read_text()
        assert result.evaluation.correct_top1 < 6, "there is something to show"
    assert all("Where it looked" in page and "taken for" in page for page in pages.values())
    assert 'class="strip wrong"' in pages["csv"] and 'alt="3 frames of test_' in pages["csv"]
    assert 'class="strip' not in pages["shards"]
