"""``clip_vit`` beside open_clip itself, with small models and random weights."""

import json
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from art import ARTModel, build_backbone
from art.backbones.clip import SIZES
from art.extras import import_extra

if find_spec("open_clip") is None:
    pytest.skip("the extra [clip] is not installed", allow_module_level=True)
open_clip = import_extra("open_clip", extra="clip", needed_by="these tests")

TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 24, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8}
CONFIGS = {
    "small-vit": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT},
    "small-vit-quickgelu": {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT, "quick_gelu": True},
    # As CLIPA: the patches are pooled, and normalised after that.
    "small-vit-pooled": {
        "embed_dim": 16,
        "vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "patch_dropout": 0.5},
        "text_cfg": TEXT,
    },
    # As SigLIP: the tower is timm's.
    "small-timm": {
        "embed_dim": 64,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": TEXT,
    },
    "small-coca": {"embed_dim": 16, "vision_cfg": {**VIT, "attentional_pool": True}, "text_cfg": TEXT},
}
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@pytest.fixture(scope="module", autouse=True)
def small_models(tmp_path_factory):
    """They join open_clip's own: it has no way to take them back, and no test here asks for all names."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def make(model="small-vit", **given):
    torch.manual_seed(0)
    return build_backbone("clip_vit", **{"num_frames": 3, "model": model, **given}).eval()


def library(model="small-vit", **given):
    torch.manual_seed(1)
    return open_clip.create_model(model, **given).eval()


def saved(module, path):
    torch.save(module.state_dict(), path)
    return str(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


def random_video(size=24):
    return torch.rand(2, 3, 3, size, size, generator=torch.Generator().manual_seed(2))


def in_its_colours(video, colours=OPENAI):
    mean, std = (torch.tensor(values)[:, None, None] for values in colours)
    return ((video - mean) / std).flatten(0, 1)


@pytest.mark.parametrize("model", ["small-vit", "small-vit-quickgelu", "small-vit-pooled"])
def test_features_are_those_of_open_clip(model, path):
    theirs = library(model)
    backbone = make(model, pretrained=saved(theirs, path))
    theirs.visual.output_tokens = True
    with torch.no_grad():
        projected, tokens = theirs.visual(in_its_colours(random_video()))
        features = backbone(random_video())
    assert features.grid == (3, 3)
    assert_close(features.tokens, tokens.unflatten(0, (2, 3)))
    # The projection is linear: that of the mean is the mean of what the library projects.
    assert_close(features.class_token @ theirs.visual.proj, projected.unflatten(0, (2, 3)).mean(1))


def test_features_of_a_tower_of_timm_are_those_of_open_clip(path):
    pytest.importorskip("timm", reason="timm is not installed")
    theirs = library("small-timm")
    backbone = make("small-timm", pretrained=saved(theirs, path))
    video = random_video(160)
    trunk = theirs.visual.trunk
    with torch.no_grad():
        features = backbone(video)
        frames = in_its_colours(video)
        assert_close(features.class_token, theirs.encode_image(frames).unflatten(0, (2, 3)).mean(1))
        tokens = trunk.forward_features(frames)[:, trunk.num_prefix_tokens :]
        assert_close(features.tokens, tokens.unflatten(0, (2, 3)))


def test_positions_of_a_tower_of_timm_are_interpolated(path):
    pytest.importorskip("timm", reason="timm is not installed")
    from timm.layers import resample_abs_pos_embed

    theirs = library("small-timm")
    backbone = make("small-timm", pretrained=saved(theirs, path), input_size=48)
    positions = theirs.visual.trunk.pos_embed
    prefix = positions.shape[1] - 100
    expected = resample_abs_pos_embed(positions, [3, 3], num_prefix_tokens=prefix)
    assert_close(backbone.model.pos_embed, expected)
    assert backbone(random_video(48)).grid == (3, 3)
    with pytest.raises(ValueError, match="input_size is 50, expected a multiple of the patch size, 16"):
        make("small-timm", input_size=50)


def test_tokens_lie_row_by_row():
    backbone, video = make(), random_video()
    changed = video.clone()
    changed[0, 1, :, 8:16, :8] = 5  # the second row's first patch
    with torch.no_grad():
        moved = (backbone(changed).tokens - backbone(video).tokens).norm(dim=-1)
    assert moved[0, 1].argmax() == 3
    assert moved[1].max() == moved[0, ::2].max() == 0


def test_no_patch_is_dropped_in_training():
    assert make("small-vit-pooled").train()(random_video()).tokens.shape == (2, 3, 9, 24)


@pytest.mark.parametrize("part", ["whole", "tower", "tower with its prefix"])
def test_a_local_file_is_loaded(part, tmp_path):
    theirs = library()
    state = theirs.state_dict() if part == "whole" else theirs.visual.state_dict()
    if part == "tower with its prefix":
        state = {f"visual.{name}": tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "weights.safetensors")
    loaded = make(pretrained=str(tmp_path / "weights.safetensors")).model.state_dict()
    assert_close(loaded, {n: t for n, t in theirs.visual.state_dict().items() if n != "proj"})


def test_positions_are_interpolated_as_open_clip_does(path):
    theirs = library()
    backbone = make(pretrained=saved(theirs, path), input_size=40)
    larger = library(pretrained=str(path), force_image_size=40)
    assert_close(backbone.model.positional_embedding, larger.visual.positional_embedding)
    assert backbone.input_size == 40
    assert backbone(random_video(40)).grid == (5, 5)


def test_quick_gelu_may_be_asked_for(path):
    saved(library(), path)
    video = random_video()
    with torch.no_grad():
        asked = make(pretrained=str(path), quick_gelu=True)(video).tokens
        assert_close(asked, make("small-vit-quickgelu", pretrained=str(path))(video).tokens)
        assert not torch.allclose(asked, make(pretrained=str(path))(video).tokens)
        assert_close(
            make("small-vit-quickgelu", pretrained=str(path), quick_gelu=False)(video).tokens,
            make(pretrained=str(path))(video).tokens,
        )


# Tags. Nothing is downloaded: the file that a tag stands for is given.


@pytest.fixture
def tags(monkeypatch, path):
    """Two tags of "small-vit", the second for other colours; the file of both is ``path``."""
    other = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    known = {"ours": {"url": "ours", "quick_gelu": True}, "coloured": {"url": "ours", **other}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-vit", known)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(path))
    return other


def test_a_tag_is_loaded_by_open_clip(tags, path):
    saved(library(), path)
    backbone = make(pretrained="ours", quick_gelu=True)
    video = random_video()
    with torch.no_grad():
        assert_close(backbone(video), make(pretrained=str(path), quick_gelu=True)(video))
        assert make(pretrained="ours", quick_gelu=True, input_size=40)(random_video(40)).grid == (5, 5)


def test_a_tag_of_another_activation_is_an_error(tags):
    with pytest.raises(ValueError, match=r"'ours' of small-vit was trained with quick_gelu=True.*give quick_gelu=True"):
        make(pretrained="ours")
    with pytest.raises(ValueError, match="give quick_gelu=False"):
        make(pretrained="coloured", quick_gelu=True)


def test_colours_are_those_of_the_tag_and_else_of_all_tags(tags, path, monkeypatch):
    saved(library(), path)
    mean = torch.tensor(tags["mean"])
    assert_close(make(pretrained="coloured").colour_mean.flatten(), mean)
    assert_close(make().colour_mean.flatten(), torch.tensor(OPENAI[0]))
    monkeypatch.delitem(open_clip.pretrained._PRETRAINED["small-vit"], "ours")
    assert_close(make(pretrained=str(path)).colour_mean.flatten(), mean)
    assert_close(make(colour_mean=[0.5, 0.5, 0.5]).colour_mean.flatten(), torch.full((3,), 0.5))


# Requests.


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "ViT-B-17"}, r"'ViT-B-17' is not one of open_clip's; did you mean 'ViT-B-16'"),
        ({"model": "RN50"}, r"image tower of model 'RN50' leaves no patch tokens of one grid.*such as 'ViT-B-16'"),
        ({"model": "small-coca"}, "leaves no patch tokens of one grid"),
        ({"model": "convnext_base"}, "leaves no patch tokens of one grid"),
        ({"input_size": 30}, "input_size is 30, expected a multiple of the patch size, 8, such as 24 or 32"),
    ],
)
def test_models_and_sizes_that_do_not_fit_are_named(given, told):
    with pytest.raises(ValueError, match=told):
        make(**given)


def test_files_that_do_not_fit_are_named(path):
    with pytest.raises(
        FileNotFoundError, match=r"'nowhere.pt': expected the path of a checkpoint, or a tag of ViT-B-16"
    ):
        make("ViT-B-16", pretrained="nowhere.pt")
    saved(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"2 unexpected: weight, bias\n.*What would fit: .*open_clip's small-vit"):
        make(pretrained=str(path))
    with pytest.raises(TypeError, match="quick_gelo"):
        make(quick_gelo=True)


def test_the_names_are_models_of_open_clip():
    assert set(SIZES.values()) <= set(open_clip.list_models())
    backbone = build_backbone("clip_vit_b_32", num_frames=2)
    assert (backbone.channels, backbone.input_size, backbone.grid) == (768, 224, (7, 7))


def test_frozen_leaves_everything_as_it_is():
    backbone = make("small-vit-pooled", frozen=True).train()
    first = backbone(random_video())
    assert not first.tokens.requires_grad and not first.class_token.requires_grad
    assert_close(backbone(random_video()).tokens, first.tokens)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_it_compiles_without_a_graph_break():
    backbone = make()
    with torch.no_grad():
        assert_close(torch.compile(backbone, fullgraph=True, backend="eager")(random_video()), backbone(random_video()))


@pytest.mark.parametrize("frozen", [False, True])
def test_art_on_it_learns_is_saved_and_loaded(frozen, tmp_path, path):
    options = {"model": "small-vit", "frozen": frozen, "colour_mean": [0.5, 0.5, 0.5]}
    given = {"latent_dim": 16, "num_heads": 2, "pretrained": saved(library(), path)}
    model = ARTModel(["walk", "run", "jump"], "clip_vit", 3, backbone_options=options, **given)
    model.loss(model(random_video()), torch.tensor([0, 2])).total.backward()
    assert all((parameter.grad is None) == frozen for parameter in model.backbone.parameters())
    assert model.token_projection.weight.grad.abs().sum() > 0
    model.save_pretrained(tmp_path / "ours")
    path.unlink()
    with torch.no_grad():
        loaded = ARTModel.from_pretrained(tmp_path / "ours")
        assert_close(loaded(random_video()).logits, model.eval()(random_video()).logits)
