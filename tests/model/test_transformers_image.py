"""``dinov3``, ``dinov2``, ``dinov2_with_registers`` and ``siglip2`` compared with transformers, with random weights."""

import json
from importlib.util import find_spec

import pytest
import torch
from torch.testing import assert_close

from art import build_backbone
from art.backbones.transformers_base import checkpoint_license
from art.extras import import_extra

if find_spec("transformers") is None:
    pytest.skip("the extra [transformers] is not installed", allow_module_level=True)
transformers = import_extra("transformers", extra="transformers", needed_by="these tests")

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8}
OPTIONS = {
    "dinov3": {**SMALL, "intermediate_size": 32},
    "dinov2": {**SMALL, "mlp_ratio": 2},
    "dinov2_with_registers": {**SMALL, "mlp_ratio": 2},
    "siglip2": {**SMALL, "intermediate_size": 32},
}
NAMES = {
    "dinov3": "DINOv3ViT",
    "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
    "siglip2": "SiglipVision",
}
PREFIX = {"dinov3": 5, "dinov2": 1, "dinov2_with_registers": 5, "siglip2": 0}
FAMILIES = list(NAMES)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
MEAN_STD = {**dict.fromkeys(FAMILIES, IMAGENET), "siglip2": (0.5, 0.5)}


def make(family, **options):
    torch.manual_seed(0)
    return build_backbone(family, **{"num_frames": 3, "input_size": 24, **OPTIONS[family], **options}).eval()


def make_reference(family, kind="Model", **options):
    """Return a model of transformers of the same size, with random positions, registers, and biases."""
    torch.manual_seed(1)
    registers = {"num_register_tokens": 4} if family == "dinov3" else {}
    config = getattr(transformers, f"{NAMES[family]}Config")
    settings = config(**{"image_size": 24, **registers, **OPTIONS[family], **options})
    model = getattr(transformers, NAMES[family] + kind)(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def save(model, directory):
    model.save_pretrained(directory)
    return str(directory)


def frames(family, video):
    mean, std = (torch.tensor(values).expand(3)[:, None, None] for values in MEAN_STD[family])
    return ((video - mean) / std).flatten(0, 1)


def random_video(size=24):
    return torch.rand(2, 3, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_match_transformers(family, tmp_path):
    reference, video, prefix = make_reference(family), random_video(), PREFIX[family]
    backbone = make(family, pretrained=save(reference, tmp_path))
    with torch.no_grad():
        expected = reference(frames(family, video))
        features, named = backbone(video), backbone.named_features(video)
    hidden = expected.last_hidden_state.unflatten(0, (2, 3))
    assert hidden.shape[2] == prefix + 9
    assert_close(features.tokens, hidden[:, :, prefix:])
    assert_close(features.class_token, expected.pooler_output.unflatten(0, (2, 3)).mean(1))
    assert features.grid == (3, 3) and backbone.framewise and backbone.channels == 16
    assert ("prefix" in named) == (prefix > 0)
    if prefix:
        assert_close(named["prefix"], hidden[:, :, :prefix])


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_layers_match_the_feature_maps_of_transformers(family, tmp_path):
    """``DINOv3ViTBackbone`` and its equals normalize each layer and omit the prefix."""
    reference, video = make_reference(family, "Backbone", out_indices=[1, 2, 3]), random_video()
    backbone = make(family, pretrained=save(reference, tmp_path))
    with torch.no_grad():
        expected = reference(frames(family, video)).feature_maps
        named = backbone.named_features(video, layers=[0, 1, -1])
    for layer, feature_map in zip([0, 1, -1], expected, strict=True):
        assert_close(named[f"tokens.{layer}"], feature_map.flatten(2).transpose(1, 2).unflatten(0, (2, 3)))
    assert_close(named["tokens.-1"], named["tokens"])


def test_layers_of_siglip_match_transformers(tmp_path):
    reference, video = make_reference("siglip2"), random_video()
    backbone = make("siglip2", pretrained=save(reference, tmp_path))
    with torch.no_grad():
        hidden = reference(frames("siglip2", video), output_hidden_states=True).hidden_states
        named = backbone.named_features(video, layers=[1, -1])
        assert_close(named["tokens.1"], reference.post_layernorm(hidden[2]).unflatten(0, (2, 3)))
    assert_close(named["tokens.-1"], named["tokens"])


@pytest.mark.parametrize("family", FAMILIES)
def test_other_sizes_match_transformers(family, tmp_path):
    """With other sizes than its own, the reference interpolates positions in each forward pass."""
    reference, video = make_reference(family), random_video(40)
    backbone = make(family, pretrained=save(reference, tmp_path), input_size=40)
    options = {"interpolate_pos_encoding": True} if family == "siglip2" else {}
    with torch.no_grad():
        expected = reference(frames(family, video), **options).last_hidden_state.unflatten(0, (2, 3))
        assert_close(backbone(video).tokens, expected[:, :, PREFIX[family] :])


def test_siglip_checkpoints_with_a_text_tower(tmp_path):
    vision = make_reference("siglip2").config.to_dict()
    text = {**SMALL, "intermediate_size": 32, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 1}
    del text["patch_size"]
    reference = transformers.SiglipModel(transformers.SiglipConfig(vision_config=vision, text_config=text)).eval()
    backbone, video = make("siglip2", pretrained=save(reference, tmp_path)), random_video()
    with torch.no_grad():
        expected = reference.vision_model(frames("siglip2", video)).pooler_output
        assert_close(backbone(video).class_token, expected.unflatten(0, (2, 3)).mean(1))
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["model_type"] = "siglip2_vision_model"  # NaFlex
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="a checkpoint of 'siglip2_vision_model', expected one of 'siglip_vision_mod"):
        make("siglip2", pretrained=str(tmp_path))


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("dinov3", {"num_register_tokens": 0}, r"num_register_tokens is 4, here 0. Matching options: num_register_tok"),
        ("dinov2", {"num_hidden_layers": 2}, r"num_hidden_layers is 3, here 2"),
        ("siglip2", {"patch_size": 4}, r"patch_size is 8, here 4"),
    ],
)
def test_architecture_mismatch(family, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(family, pretrained=save(make_reference(family), tmp_path), **options)


def test_defaults_are_the_published_base_models():
    with torch.device("meta"):
        backbones = {name: build_backbone(name, num_frames=1) for name in FAMILIES}
    assert [backbone.channels for backbone in backbones.values()] == [768] * 4
    assert [backbone.grid[0] for backbone in backbones.values()] == [14, 16, 16, 14]
    assert backbones["dinov3"].model.config.num_register_tokens == 4


# License.


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: cc-by-nc-4.0\n---\n# A model", "cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
        ("---\nlicense: other\n---\n", "other"),
        ("# A model without metadata", None),
        (None, None),
    ],
)
def test_license_of_the_model_card(card, license, tmp_path):
    directory = save(make_reference("dinov2"), tmp_path)
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert make("dinov2", pretrained=directory).license == license
    assert make("dinov2").license is None


def test_published_weights_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"'facebook/dinov2-base', whose config.json could not be read"):
        make("dinov2", pretrained="facebook/dinov2-base")
    assert checkpoint_license("facebook/dinov3-vitb16-pretrain-lvd1689m") == "dinov3-license"
    assert checkpoint_license("facebook/dinov2-with-registers-base") == "apache-2.0"
    assert checkpoint_license("somebody/dinov2-base") is None
