"""Text encoders."""

import sys

import pytest
import torch
from torch.testing import assert_close

from art.text import build_text_encoder, text_width


def test_wordllama_is_the_mean_of_its_tokens():
    encode = build_text_encoder("wordllama")
    vectors = encode(["walk run", "walk", "run"])
    assert vectors.shape == (3, 256) == (3, text_width("wordllama"))
    assert vectors.dtype == torch.float32
    assert_close(vectors[0], (vectors[1] + vectors[2]) / 2)


def test_wordllama_knows_what_words_mean():
    left, sprint, run, table = torch.nn.functional.normalize(
        build_text_encoder("wordllama")(["left", "sprint", "run", "table"]), dim=1
    )
    assert sprint @ run > sprint @ table
    assert sprint @ run > left @ table


def test_wordllama_needs_a_word():
    with pytest.raises(ValueError, match=r"texts\[1\] is ''"):
        build_text_encoder("wordllama")(["a", ""])


def test_unknown_encoder_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'clip'"):
        build_text_encoder("clips")


def test_clip_without_open_clip_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'art-kernels\[clip\]'"):
        build_text_encoder("clip")


def test_clip_encodes_from_a_local_file(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="the extra [clip] is not installed")
    from art.text.clip import ClipText, _import_open_clip

    _import_open_clip()
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    import json

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
    with pytest.raises(ValueError, match="is not one of open_clip's"):
        ClipText("no-such-model")
    with pytest.raises(ValueError, match="is not one of open_clip's"):
        text_width("clip", model="no-such-model")


def test_the_width_of_clip_needs_no_weights():
    pytest.importorskip("open_clip", reason="the extra [clip] is not installed")
    assert (text_width("clip"), text_width("clip", model="ViT-L-14", pretrained="openai")) == (512, 768)
