"""``vjepa2`` and ``videoprism`` compared with transformers, with small models and random weights."""

import json
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from art import build_backbone
from art.extras import import_extra

if find_spec("transformers") is None:
    pytest.skip("the extra [transformers] is not installed", allow_module_level=True)
transformers = import_extra("transformers", extra="transformers", needed_by="these tests")

VJEPA = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8, "mlp_ratio": 2.0}
PREDICTOR = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1, "num_pooler_layers": 1}
PRISM = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "tubelet_size": [1, 8, 8],
    "num_spatial_layers": 2,
    "num_temporal_layers": 2,
}
OPTIONS = {"vjepa2": VJEPA, "videoprism": PRISM}


def make(family, **options):
    torch.manual_seed(0)
    return build_backbone(family, **{"num_frames": 4, "input_size": 24, **OPTIONS[family], **options}).eval()


def perturb(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def vjepa_reference(kind="VJEPA2Model", **options):
    config = transformers.VJEPA2Config(
        **{"crop_size": 24, "frames_per_clip": 4, "num_labels": 3, **VJEPA, **PREDICTOR, **options}
    )
    return perturb(getattr(transformers, kind)(config))


def prism_config(**options):
    return transformers.VideoPrismVisionConfig(**{"image_size": 24, "num_frames": 4, **PRISM, **options})


def prism_reference(kind="VideoPrismVisionModel", **options):
    return perturb(getattr(transformers, kind)(prism_config(num_auxiliary_layers=1, **options)))


def save(model, directory):
    model.save_pretrained(directory)
    return str(directory)


def imagenet(video):
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (video - mean) / std


def random_video(num_frames=4, size=24):
    return torch.rand(2, num_frames, 3, size, size, generator=torch.Generator().manual_seed(2))


# V-JEPA 2.


@pytest.mark.parametrize("kind", ["VJEPA2Model", "VJEPA2ForVideoClassification"])
def test_vjepa2_matches_transformers(kind, tmp_path, capfd):
    reference, video = vjepa_reference(kind), random_video()
    backbone = make("vjepa2", pretrained=save(reference, tmp_path))
    assert "UNEXPECTED" not in "".join(capfd.readouterr()), "weights of the predictor and classifier are not reported"
    assert not any("predictor" in name for name, _ in backbone.model.named_modules())
    with torch.no_grad():
        expected = reference.base_model(imagenet(video), skip_predictor=True, output_hidden_states=True)
        features = backbone(video)
        named = backbone.named_features(video, layers=[0, -1])
    hidden = expected.last_hidden_state
    assert_close(named["tokens"], hidden.reshape(2, 2, 9, 24))
    assert_close(features.tokens, hidden.reshape(2, 2, 9, 24).repeat_interleave(2, dim=1))
    assert_close(features.class_token, hidden.mean(1))
    assert_close(named["tokens.0"], expected.hidden_states[1].reshape(2, 2, 9, 24))
    assert_close(named["tokens.-1"], expected.hidden_states[3].reshape(2, 2, 9, 24))
    assert set(named) == {"tokens", "class_token", "tokens.0", "tokens.-1"}
    assert (features.grid, backbone.tubelet, backbone.framewise) == ((3, 3), 2, False)


def test_vjepa2_other_frame_counts_and_sizes(tmp_path):
    """Rotary positions are those of frame, row and column: the reference of that size has the same weights."""
    reference, video = vjepa_reference(), random_video(6, 40)
    directory = save(reference, tmp_path)
    backbone = make("vjepa2", pretrained=directory, num_frames=6, input_size=40)
    larger = transformers.VJEPA2Model.from_pretrained(directory, crop_size=40).eval()
    with torch.no_grad():
        expected = larger(imagenet(video), skip_predictor=True).last_hidden_state
        assert_close(backbone(video).tokens[:, ::2].flatten(1, 2), expected)


def test_vjepa2_saved_with_its_encoder_alone(tmp_path):
    first = make("vjepa2")
    second = make("vjepa2", pretrained=save(first.model, tmp_path))
    assert_close(second.state_dict(), first.state_dict())


def test_vjepa2_mismatch(tmp_path):
    with pytest.raises(ValueError, match=r"num_hidden_layers is 3, here 2. Matching options: num_hidden_layers=3"):
        make("vjepa2", pretrained=save(vjepa_reference(), tmp_path), num_hidden_layers=2)
    with pytest.raises(TypeError, match="no configurable field 'crop_size'; did you mean 'input_size'"):
        make("vjepa2", crop_size=24)
    with pytest.raises(ValueError, match="num_frames is 5, expected a multiple of the 2 frames"):
        make("vjepa2", num_frames=5)
    with torch.device("meta"):  # the defaults are those of vjepa2-vitl-fpc64-256
        backbone = build_backbone("vjepa2", num_frames=16)
    assert (backbone.channels, backbone.grid, len(backbone.model.encoder.layer)) == (1024, (16, 16), 24)


# VideoPrism.


@pytest.mark.parametrize("kind", ["VideoPrismVisionModel", "VideoPrismForVideoClassification", "VideoPrismVideoModel"])
def test_videoprism_matches_transformers(kind, tmp_path):
    reference, video = prism_reference(kind), random_video()
    backbone = make("videoprism", pretrained=save(reference, tmp_path))
    encoder = getattr(reference, "vision_model", reference)
    with torch.no_grad():
        expected = encoder(video, output_hidden_states=True)
        named = backbone.named_features(video, layers=[1, 2, -1])
    assert_close(named["tokens"], expected.last_hidden_state.reshape(2, 4, 9, 16))
    assert_close(named["class_token"], expected.last_hidden_state.mean(1))
    assert_close(named["tokens.1"], expected.last_spatial_hidden_state.reshape(2, 4, 9, 16))
    in_time = expected.hidden_states[3].reshape(2, 9, 4, 16)
    assert_close(named["tokens.2"], in_time.transpose(1, 2))
    assert_close(named["tokens.-1"], named["tokens"])
    assert (backbone.tubelet, backbone.framewise) == (1, False)


@pytest.mark.parametrize(("num_frames", "size"), [(6, 24), (4, 40), (2, 16)])
def test_videoprism_positions_are_interpolated_as_in_transformers(num_frames, size, tmp_path):
    reference, video = prism_reference(), random_video(num_frames, size)
    backbone = make("videoprism", pretrained=save(reference, tmp_path), num_frames=num_frames, input_size=size)
    with torch.no_grad():
        expected = reference(video, interpolate_pos_encoding=True).last_hidden_state
        assert_close(backbone(video).tokens.flatten(1, 2), expected)


def test_videoprism_checkpoint_with_a_text_tower(tmp_path):
    text = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1}
    config = transformers.VideoPrismConfig(vision_config=prism_config().to_dict(), text_config=text)
    reference = perturb(transformers.VideoPrismClipModel(config))
    backbone = make("videoprism", pretrained=save(reference, tmp_path))
    expected = reference.video_model.vision_model.state_dict()
    assert_close(backbone.model.state_dict(), expected)


def test_normalization_of_a_processor_that_does_not_normalize(tmp_path):
    directory = save(prism_reference(), tmp_path)
    config = {"video_processor": {"do_normalize": False, "image_mean": [0.4] * 3, "image_std": [0.3] * 3}}
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    backbone = make("videoprism", pretrained=directory)
    assert_close(backbone.image_mean.flatten(), torch.zeros(3))
    assert_close(backbone.image_std.flatten(), torch.ones(3))


def test_transformers_without_the_model(monkeypatch):
    older = SimpleNamespace(__version__="5.0.0")
    monkeypatch.setattr("art.backbones.transformers_base.import_extra", lambda *_, **__: older)
    with pytest.raises(
        ImportError, match=r"needs VideoPrismVisionModel, which transformers 5\.0\.0 lacks: pip install"
    ):
        make("videoprism")
