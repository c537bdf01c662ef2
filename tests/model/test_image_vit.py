"""``timm_vit`` and ``clip_vit`` compared with timm and open_clip, with small models and random weights."""

import functools
import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from art import build_backbone
from art.backbones.image_vit import CLIP_SIZES
from art.extras import import_extra

if find_spec("timm") is None or find_spec("open_clip") is None:
    pytest.skip("the extras [timm] and [clip] are not installed", allow_module_level=True)
timm = import_extra("timm", extra="timm", needed_by="these tests")
open_clip = import_extra("open_clip", extra="clip", needed_by="these tests")

# Models of timm with 64 channels and patches of 16 pixels: with a class token; with a register and mean pooling.
WITH_CLASS, WITH_MEAN = "test_vit", "test_vit2"


# timm.


def make_timm(model=WITH_CLASS, **options):
    torch.manual_seed(0)
    return build_backbone("timm_vit", num_frames=3, model=model, input_size=48, **options).eval()


@pytest.fixture
def video():
    return torch.rand(2, 3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model", [WITH_CLASS, WITH_MEAN, "test_vit3", "test_vit4"])
def test_timm_features_match_timm(model, video):
    backbone = make_timm(model)
    reference_model = timm.create_model(model, img_size=48, num_classes=0).eval()
    reference_model.load_state_dict(backbone.model.state_dict())
    frames = (video.flatten(0, 1) - 0.5) / 0.5
    with torch.no_grad():
        tokens, class_token, grid = backbone(video)
        expected = reference_model.forward_features(frames)[:, reference_model.num_prefix_tokens :]
        assert_close(class_token, reference_model(frames).unflatten(0, (2, 3)).mean(1))
    assert grid == (3, 3)
    assert_close(tokens, expected.unflatten(0, (2, 3)))
    assert backbone.channels == class_token.shape[1] == tokens.shape[3]


@pytest.mark.parametrize(
    ("model", "size", "prefix", "license"),
    [
        ("vit_base_patch16_dinov3", 48, 5, "dinov3-license"),
        ("vit_base_patch16_dinov3_qkvb", 48, 5, "dinov3-license"),
        ("vit_base_patch14_dinov2", 42, 1, "apache-2.0"),
        ("vit_base_patch14_reg4_dinov2", 42, 5, "apache-2.0"),
        ("vit_base_patch16_siglip_256", 48, 0, "apache-2.0"),
        ("vit_base_patch16_siglip_gap_256", 48, 0, "apache-2.0"),
    ],
)
def test_timm_prefix_pooling_and_layers_of_foundation_models(model, size, prefix, license, monkeypatch):
    """The architectures of timm, with less and narrower blocks."""
    small = {"embed_dim": 48, "depth": 3, "num_heads": 3}
    monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, **small))
    backbone = build_backbone("timm_vit", num_frames=3, model=model, input_size=size).eval()
    video = torch.rand(2, 3, 3, size, size)
    frames = backbone.normalize(video).flatten(0, 1)
    first = []
    backbone.model.blocks[0].register_forward_hook(lambda module, args, output: first.append(output))
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        features, named = backbone(video), backbone.named_features(video, layers=[0, -1])
        hidden = backbone.model.forward_features(frames).unflatten(0, (2, 3))
        pooled = backbone.model(frames).unflatten(0, (2, 3)).mean(1)  # without a classifier
    assert hidden.shape[2] == prefix + 9
    assert_close(features.tokens, hidden[:, :, prefix:])
    assert_close(named["tokens.-1"], features.tokens)
    assert_close(named["tokens.0"], backbone.model.norm(first[0])[:, prefix:].unflatten(0, (2, 3)))
    assert_close(features.class_token, pooled)
    assert ("prefix" in named) == (prefix > 0)
    if prefix:
        assert_close(named["prefix"], hidden[:, :, :prefix])
    assert timm.get_pretrained_cfg(model).license == license


@pytest.mark.parametrize("pretrained", ["file", "tag"])
def test_timm_loads_a_file_or_tag_without_the_classifier(pretrained, monkeypatch, tmp_path):
    """The download of the tag is replaced by the same weights."""
    torch.manual_seed(1)
    expected = timm.create_model(WITH_CLASS, img_size=48, num_classes=7).state_dict()
    save_file(expected, tmp_path / "weights.safetensors")
    requested = []
    monkeypatch.setattr(
        timm.models._builder, "load_state_dict_from_hf", lambda name, *_, **__: requested.append(name) or expected
    )
    backbone = make_timm(pretrained="r160_in1k" if pretrained == "tag" else str(tmp_path / "weights.safetensors"))
    assert requested == (["timm/test_vit.r160_in1k"] if pretrained == "tag" else [])
    assert_close(backbone.model.state_dict(), {n: v for n, v in expected.items() if "head." not in n})
    assert_close(backbone.image_mean.flatten(), torch.full((3,), 0.5))
    assert backbone.license == ("apache-2.0" if pretrained == "tag" else None)


def test_timm_positions_are_interpolated_as_in_timm(path):
    reference_model = timm.create_model(WITH_CLASS, img_size=80)
    backbone = make_timm(pretrained=save(reference_model, path))
    expected = timm.layers.resample_abs_pos_embed(reference_model.pos_embed.data, [3, 3])
    assert_close(backbone.model.pos_embed.data, expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vit_base_patch16_225", r"not a model of timm; did you mean 'vit_base_patch16_224'"),
        ("resnet18", r"'resnet18' has no patch tokens of one grid; expected.*'vit_base_patch16_224'"),
        ("swin_tiny_patch4_window7_224", "has no patch tokens of one grid"),
    ],
)
def test_timm_invalid_models(model, message):
    with pytest.raises(ValueError, match=message):
        make_timm(model)


def test_timm_invalid_options(path):
    with pytest.raises(FileNotFoundError, match=r"'nowhere.pt': expected the path.*a tag of test_vit \(r160_in1k\)"):
        make_timm(pretrained="nowhere.pt")
    with pytest.raises(ValueError, match="input_size is 50, expected a multiple of the patch size, 16"):
        build_backbone("timm_vit", num_frames=1, model=WITH_CLASS, input_size=50)
    with pytest.raises(TypeError, match="dropp"):
        make_timm(dropp=0.1)
    save(timm.create_model(WITH_MEAN, img_size=48), path)
    message = r"(?s)does not match.*missing: cls_token.*unexpected: reg_token.*Expected .*timm's test_vit"
    with pytest.raises(ValueError, match=message):
        make_timm(pretrained=str(path))


# open_clip.

TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 24, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8}
CONFIGS = {
    name: {"embed_dim": 16, "text_cfg": TEXT, **config}
    for name, config in {
        "small-vit": {"vision_cfg": VIT},
        "small-vit-quickgelu": {"vision_cfg": VIT, "quick_gelu": True},
        # As in CLIPA: the patches are pooled and then normalized.
        "small-vit-pooled": {
            "vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "patch_dropout": 0.5}
        },
        # As in SigLIP: the tower is from timm.
        "small-timm": {
            "embed_dim": 64,
            "custom_text": True,
            "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
        },
        "small-coca": {"vision_cfg": {**VIT, "attentional_pool": True}},
    }.items()
}
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.fixture(scope="module", autouse=True)
def small_clip_models(tmp_path_factory):
    """Register the models of ``CONFIGS`` in open_clip, which cannot unregister them."""
    directory = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (directory / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(directory)


def make_clip(model="small-vit", **options):
    torch.manual_seed(0)
    return build_backbone("clip_vit", **{"num_frames": 3, "model": model, **options}).eval()


def reference(model="small-vit", **options):
    torch.manual_seed(1)
    return open_clip.create_model(model, **options).eval()


def save(module, path):
    torch.save(module.state_dict(), path)
    return str(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


def random_video(size=24):
    return torch.rand(2, 3, 3, size, size, generator=torch.Generator().manual_seed(2))


def normalize(video):
    mean, std = (torch.tensor(values)[:, None, None] for values in OPENAI)
    return ((video - mean) / std).flatten(0, 1)


@pytest.mark.parametrize("model", ["small-vit", "small-vit-quickgelu", "small-vit-pooled"])
def test_clip_features_match_open_clip(model, path):
    expected_model = reference(model)
    backbone = make_clip(model, pretrained=save(expected_model, path)).train()  # without the dropout of patches
    expected_model.visual.output_tokens = True
    with torch.no_grad():
        projected, tokens = expected_model.visual(normalize(random_video()))
        features = backbone(random_video())
    assert features.grid == (3, 3)
    assert_close(features.tokens, tokens.unflatten(0, (2, 3)))
    # The projection is linear: projecting the mean equals the mean of the projections.
    assert_close(features.class_token @ expected_model.visual.proj, projected.unflatten(0, (2, 3)).mean(1))


def test_clip_features_of_timm_towers_match_open_clip(path):
    expected_model = reference("small-timm")
    backbone = make_clip("small-timm", pretrained=save(expected_model, path))
    video = random_video(160)
    trunk = expected_model.visual.trunk
    with torch.no_grad():
        features = backbone(video)
        frames = normalize(video)
        assert_close(features.class_token, expected_model.encode_image(frames).unflatten(0, (2, 3)).mean(1))
        tokens = trunk.forward_features(frames)[:, trunk.num_prefix_tokens :]
        assert_close(features.tokens, tokens.unflatten(0, (2, 3)))


def test_clip_positions_of_timm_towers_are_interpolated(path):
    expected_model = reference("small-timm")
    backbone = make_clip("small-timm", pretrained=save(expected_model, path), input_size=48)
    positions = expected_model.visual.trunk.pos_embed
    prefix = positions.shape[1] - 100
    expected = timm.layers.resample_abs_pos_embed(positions, [3, 3], num_prefix_tokens=prefix)
    assert_close(backbone.model.pos_embed, expected)
    assert backbone(random_video(48)).grid == (3, 3)


@pytest.mark.parametrize("part", ["whole", "tower", "tower with its prefix"])
def test_clip_loads_a_local_file(part, tmp_path):
    expected_model = reference()
    state = expected_model.state_dict() if part == "whole" else expected_model.visual.state_dict()
    if part == "tower with its prefix":
        state = {f"visual.{name}": tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "weights.safetensors")
    loaded = make_clip(pretrained=str(tmp_path / "weights.safetensors")).model.state_dict()
    assert_close(loaded, {n: t for n, t in expected_model.visual.state_dict().items() if n != "proj"})


def test_clip_positions_are_interpolated_as_in_open_clip(path):
    expected_model = reference()
    backbone = make_clip(pretrained=save(expected_model, path), input_size=40)
    larger = reference(pretrained=str(path), force_image_size=40)
    assert_close(backbone.model.positional_embedding, larger.visual.positional_embedding)
    assert backbone.input_size == 40
    assert backbone(random_video(40)).grid == (5, 5)


def test_quick_gelu(path):
    save(reference(), path)
    video = random_video()

    def tokens(model="small-vit", **options):
        with torch.no_grad():
            return make_clip(model, pretrained=str(path), **options)(video).tokens

    quick, plain = tokens(quick_gelu=True), tokens()
    assert not torch.allclose(quick, plain)
    assert_close(tokens("small-vit-quickgelu"), quick)
    assert_close(tokens("small-vit-quickgelu", quick_gelu=False), plain)


@pytest.fixture
def tags(monkeypatch, path):
    """Two tags of "small-vit", the second with another normalization; ``path`` replaces the download of both."""
    other = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    known = {"ours": {"url": "ours", "quick_gelu": True}, "other": {"url": "ours", **other}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-vit", known)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(path))
    return other


def test_clip_tag(tags, path):
    save(reference(), path)
    backbone = make_clip(pretrained="ours", quick_gelu=True)
    video = random_video()
    with torch.no_grad():
        assert_close(backbone(video), make_clip(pretrained=str(path), quick_gelu=True)(video))
        assert make_clip(pretrained="ours", quick_gelu=True, input_size=40)(random_video(40)).grid == (5, 5)
    with pytest.raises(ValueError, match=r"'ours' of small-vit was trained with quick_gelu=True.*pass quick_gelu=True"):
        make_clip(pretrained="ours")
    with pytest.raises(ValueError, match="pass quick_gelu=False"):
        make_clip(pretrained="other", quick_gelu=True)


def test_clip_mean_and_std_of_the_tags(tags, path, monkeypatch):
    save(reference(), path)
    mean = torch.tensor(tags["mean"])
    assert_close(make_clip(pretrained="other").image_mean.flatten(), mean)
    assert_close(make_clip().image_mean.flatten(), torch.tensor(OPENAI[0]))
    monkeypatch.delitem(open_clip.pretrained._PRETRAINED["small-vit"], "ours")
    assert_close(make_clip(pretrained=str(path)).image_mean.flatten(), mean)
    assert_close(make_clip(image_mean=[0.5, 0.5, 0.5]).image_mean.flatten(), torch.full((3,), 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ViT-B-17"}, r"'ViT-B-17' is not a model of open_clip; did you mean 'ViT-B-16'"),
        ({"model": "RN50"}, r"image tower of model 'RN50' has no patch tokens of one grid.*such as 'ViT-B-16'"),
        ({"model": "small-coca"}, "has no patch tokens of one grid"),
        ({"model": "convnext_base"}, "has no patch tokens of one grid"),
        ({"input_size": 30}, "input_size is 30, expected a multiple of the patch size, 8, such as 24 or 32"),
        ({"model": "small-timm", "input_size": 50}, "input_size is 50, expected a multiple of the patch size, 16"),
    ],
)
def test_clip_invalid_models_and_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        make_clip(**options)


def test_clip_invalid_files(path):
    message = r"'nowhere.pt': expected the path of a checkpoint, or a tag of ViT-B-16"
    with pytest.raises(FileNotFoundError, match=message):
        make_clip("ViT-B-16", pretrained="nowhere.pt")
    save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"2 unexpected: weight, bias\n.*Expected .*open_clip's small-vit"):
        make_clip(pretrained=str(path))
    with pytest.raises(TypeError, match="quick_gelo"):
        make_clip(quick_gelo=True)


def test_clip_names_are_models_of_open_clip():
    assert set(CLIP_SIZES.values()) <= set(open_clip.list_models())
    backbone = build_backbone("clip_vit_b_32", num_frames=2)
    assert (backbone.channels, backbone.input_size, backbone.grid) == (768, 224, (7, 7))
