"""Text encoders."""

import json
import sys

import pytest
import torch
from torch.testing import assert_close

from art.text import ClipText, build_text_encoder, text_width


def test_wordllama():
    encode = build_text_encoder("wordllama")
    vectors = encode(["walk run", "walk", "run"])
    assert vectors.shape == (3, 256) == (3, text_width("wordllama"))
    assert vectors.dtype == torch.float32
    assert_close(vectors[0], (vectors[1] + vectors[2]) / 2)  # the mean of the tokens
    left, sprint, run, table = torch.nn.functional.normalize(encode(["left", "sprint", "run", "table"]), dim=1)
    assert sprint @ run > sprint @ table
    assert sprint @ run > left @ table
    with pytest.raises(ValueError, match=r"texts\[1\] is ''"):
        encode(["a", ""])


def test_unknown_and_unavailable_encoders(monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'clip'"):
        build_text_encoder("clips")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'art-kernels\[clip\]'"):
        build_text_encoder("clip")


def test_clip_from_a_local_file(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="the extra [clip] is not installed")
    from art.extras import import_extra

    import_extra("open_clip", extra="clip", needed_by="these tests")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "small-test-tower.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    weights = tmp_path / "weights.pt"
    torch.manual_seed(0)
    model = open_clip.create_model("small-test-tower")
    torch.save(model.state_dict(), weights)
    vectors = ClipText("small-test-tower", str(weights), batch_size=2)(["walk", "run", "jump"])
    assert vectors.shape == (3, 16) == (3, text_width("clip", model="small-test-tower", pretrained=str(weights)))
    assert_close(vectors.norm(dim=1), torch.ones(3))
    tokens = open_clip.get_tokenizer("small-test-tower")(["walk", "run", "jump"])
    assert_close(vectors, model.eval().encode_text(tokens, normalize=True).detach())
    with pytest.raises(ValueError, match="is not a model of open_clip"):
        ClipText("no-such-model")
    with pytest.raises(ValueError, match="is not a model of open_clip"):
        text_width("clip", model="no-such-model")


def test_clip_width_without_weights():
    pytest.importorskip("open_clip", reason="the extra [clip] is not installed")
    assert (text_width("clip"), text_width("clip", model="ViT-L-14", pretrained="openai")) == (512, 768)
