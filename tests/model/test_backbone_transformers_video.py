"""``videomae``, ``vivit`` and ``timesformer`` beside transformers itself, with small models and random weights."""

import json
from importlib.util import find_spec

import pytest
import torch
from torch.testing import assert_close

from art import ARTModel, build_backbone
from art.extras import import_extra

if find_spec("transformers") is None:
    pytest.skip("the extra [transformers] is not installed", allow_module_level=True)
transformers = import_extra("transformers", extra="transformers", needed_by="these tests")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
OPTIONS = {
    "videomae": {**SMALL, "patch_size": 8},
    "vivit": {**SMALL, "tubelet_size": [2, 8, 8]},
    "timesformer": {**SMALL, "patch_size": 8},
}
NAMES = {"videomae": "VideoMAE", "vivit": "Vivit", "timesformer": "Timesformer"}
FAMILIES = list(NAMES)
TUBELETS = {"videomae": 2, "vivit": 2, "timesformer": 1}
COLOURS = {
    "videomae": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "vivit": (0.5, 0.5),
    "timesformer": (0.45, 0.225),
}


def make(family, **given):
    torch.manual_seed(0)
    backbone = build_backbone(family, **{"num_frames": 4, "input_size": 24, **OPTIONS[family], **given}).eval()
    perturb(backbone.model)
    return backbone


def make_from(family, folder, **given):
    return build_backbone(
        family, **{"num_frames": 4, "input_size": 24, **OPTIONS[family], "pretrained": folder, **given}
    ).eval()


def perturb(model):
    """Positions, biases and class tokens begin as zeros, which hides where they go."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def library(family, **given):
    """transformers' own classifier of the same size."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{NAMES[family]}Config")
    options = {"num_frames": 4, "image_size": 24, "num_labels": 3, **OPTIONS[family], **given}
    model = getattr(transformers, f"{NAMES[family]}ForVideoClassification")(config(**options)).eval()
    perturb(model)
    return model


def saved(model, folder):
    model.save_pretrained(folder)
    return str(folder)


def in_its_colours(family, video):
    mean, std = (torch.tensor(values).expand(3)[:, None, None] for values in COLOURS[family])
    return (video - mean) / std


@pytest.fixture
def video():
    return torch.rand(2, 4, 3, 24, 24, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_library(family, tmp_path, video):
    theirs = library(family)
    backbone = make_from(family, saved(theirs, tmp_path))
    with torch.no_grad():
        tokens, class_token, grid = backbone(video)
        pixels = in_its_colours(family, video)
        hidden = theirs.base_model(pixels).last_hidden_state
        assert_close(theirs.classifier(class_token), theirs(pixels).logits)
    assert grid == (3, 3)
    assert tokens.shape == (2, 4, 9, 16)
    # In the library's order: VideoMAE without a class token, TimeSformer with time innermost.
    distinct = tokens[:, :: TUBELETS[family]]
    in_order = distinct.transpose(1, 2) if family == "timesformer" else distinct
    assert_close(in_order.flatten(1, 2), hidden if family == "videomae" else hidden[:, 1:])
    assert_close(tokens, distinct.repeat_interleave(TUBELETS[family], dim=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_lie_by_frame_and_row_by_row(family, video):
    backbone = make(family)
    changed = video.clone()
    changed[0, 2:, :, 8:16, :8] = 5  # the last two frames, the second row's first patch
    with torch.no_grad():
        moved = (backbone(changed).tokens - backbone(video).tokens).norm(dim=-1)
    assert set(moved[0].flatten().topk(2).indices.tolist()) == {2 * 9 + 3, 3 * 9 + 3}
    assert moved[1].max() == 0


@pytest.mark.parametrize("family", ["videomae", "vivit"])
@pytest.mark.parametrize("num_frames", [1, 5])
def test_frames_that_no_tubelets_make_are_an_error(family, num_frames):
    fitting = {1: "such as 2", 5: "such as 4 or 6"}[num_frames]
    with pytest.raises(
        ValueError, match=rf"num_frames is {num_frames}, expected a multiple of the 2 frames.*{fitting}"
    ):
        make(family, num_frames=num_frames)


@pytest.mark.parametrize("family", FAMILIES)
def test_another_video_than_it_was_built_for_is_an_error(family):
    backbone = make(family)
    with pytest.raises(ValueError, match=r"6 frames a clip.*expected 4.*num_frames=6"):
        backbone(torch.rand(1, 6, 3, 24, 24))
    with pytest.raises(ValueError, match=r"32×24 pixels.*expected 24×24"):
        backbone(torch.rand(1, 4, 3, 32, 24))
    with pytest.raises(ValueError, match="input_size is 30, expected a multiple of the patch size, 8"):
        make(family, input_size=30)


# Checkpoints.


def test_positions_of_timesformer_are_interpolated_as_the_library_does(tmp_path):
    theirs = library("timesformer")
    backbone = make_from("timesformer", saved(theirs, tmp_path), num_frames=6, input_size=40)
    theirs.config.num_frames, theirs.config.image_size = 6, 40  # from here on it interpolates in each pass
    video = torch.rand(2, 6, 3, 40, 40)
    with torch.no_grad():
        expected = theirs(in_its_colours("timesformer", video)).logits
        assert_close(theirs.classifier(backbone(video).class_token), expected)


def test_videomae_goes_on_counting_with_more_frames(tmp_path):
    folder = saved(library("videomae"), tmp_path)
    few, more = (make_from("videomae", folder, num_frames=n) for n in (4, 8))
    table = more.model.base_model.embeddings.position_embeddings
    assert_close(table[:, :18], few.model.base_model.embeddings.position_embeddings)


@pytest.mark.parametrize(
    ("family", "given", "told"),
    [
        ("videomae", {"input_size": 32}, r"image_size is 24, here 32. What would fit: input_size=24"),
        ("vivit", {"input_size": 32}, r"image_size is 24, here 32"),
        ("vivit", {"num_frames": 6}, r"num_frames is 4, here 6. What would fit: num_frames=4"),
        # Such weights have the same shapes: only the configuration tells.
        ("videomae", {"num_attention_heads": 4}, r"num_attention_heads is 2, here 4"),
        ("timesformer", {"hidden_act": "relu"}, r"hidden_act is gelu, here relu. What would fit: hidden_act='gelu'"),
        ("vivit", {"hidden_size": 32, "num_hidden_layers": 1}, r"hidden_size is 16, here 32, num_hidden_layers is 2"),
    ],
)
def test_another_architecture_is_told_with_what_would_fit(family, given, told, tmp_path):
    folder = saved(library(family), tmp_path)
    with pytest.raises(ValueError, match=told):
        make_from(family, folder, **given)


def test_what_acts_in_training_alone_is_free(tmp_path):
    folder = saved(library("timesformer"), tmp_path)
    assert make_from("timesformer", folder, hidden_dropout_prob=0.1).model.config.hidden_dropout_prob == 0.1


def test_another_family_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="a checkpoint of 'vivit', expected one of 'timesformer'"):
        make_from("timesformer", saved(library("vivit"), tmp_path))


def test_missing_weights_are_an_error(tmp_path):
    theirs = library("timesformer")
    del theirs.timesformer.layernorm
    with pytest.raises(ValueError, match=r"2 missing: timesformer\.layernorm\.bias, timesformer\.layernorm\.weight"):
        make_from("timesformer", saved(theirs, tmp_path))


def test_a_checkpoint_of_masked_pretraining_is_loaded(tmp_path, video):
    options = {**OPTIONS["videomae"], "use_mean_pooling": False}
    torch.manual_seed(1)
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1}
    config = transformers.VideoMAEConfig(num_frames=4, image_size=24, **options, **decoder)
    theirs = transformers.VideoMAEForPreTraining(config).eval()
    backbone = make_from("videomae", saved(theirs, tmp_path), use_mean_pooling=False)
    with torch.no_grad():
        hidden = theirs.videomae(in_its_colours("videomae", video)).last_hidden_state
        tokens, class_token, _ = backbone(video)
    assert_close(tokens[:, ::2].flatten(1, 2), hidden)
    assert_close(class_token, hidden.mean(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_without_a_classifier_is_loaded(family, tmp_path):
    theirs = getattr(transformers, f"{NAMES[family]}Model")(library(family).config)  # ViViT's with a pooler
    perturb(theirs)
    ours = make_from(family, saved(theirs, tmp_path)).model.base_model.state_dict()
    assert_close(ours, {n: v for n, v in theirs.state_dict().items() if not n.startswith("pooler.")})


def test_colours_are_those_that_the_checkpoint_tells(tmp_path):
    folder = saved(library("videomae"), tmp_path)
    told = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    assert_close(make_from("videomae", folder).colour_mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    asked = make_from("videomae", folder, colour_std=[1.0, 1.0, 1.0])
    assert_close(asked.colour_std.flatten(), torch.ones(3))
    assert_close(asked.colour_mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


# Requests.


@pytest.mark.parametrize(
    ("family", "given", "error", "told"),
    [
        (
            "videomae",
            {"hiden_size": 8},
            TypeError,
            r"VideoMAEConfig has no field 'hiden_size'.*did you mean 'hidden_size'",
        ),
        ("videomae", {"image_size": 8}, TypeError, r"no field 'image_size' to be set; did you mean 'input_size'"),
        ("vivit", {"hidden_size": "wide"}, ValueError, r"VivitConfig: .*'hidden_size' expected int, got str"),
        ("vivit", {"hidden_size": 15}, ValueError, r"hidden_size is 15, expected a multiple of num_attention_heads, 2"),
        ("vivit", {"tubelet_size": [2, 8, 4]}, ValueError, r"a patch has \[8, 4\] pixels, expected a square"),
        ("timesformer", {"attention_type": "space_only"}, ValueError, "expected 'divided_space_time'"),
        ("timesformer", {"pretrained": "nowhere"}, FileNotFoundError, "'nowhere': expected a folder"),
    ],
)
def test_requests_that_do_not_fit_are_named(family, given, error, told):
    with pytest.raises(error, match=told):
        make(family, **given)


def test_timesformer_with_joint_attention(tmp_path, video):
    theirs = library("timesformer", attention_type="joint_space_time")
    backbone = make_from("timesformer", saved(theirs, tmp_path), attention_type="joint_space_time")
    with torch.no_grad():
        expected = theirs(in_its_colours("timesformer", video)).logits
        assert_close(theirs.classifier(backbone(video).class_token), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_leaves_everything_as_it_is(family, video):
    backbone = make(family, frozen=True, hidden_dropout_prob=0.5).train()
    first = backbone(video)
    assert not first.tokens.requires_grad and not first.class_token.requires_grad
    assert_close(backbone(video).tokens, first.tokens)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_compiles_without_a_graph_break(family, video):
    backbone = make(family)
    with torch.no_grad():
        assert_close(torch.compile(backbone, fullgraph=True, backend="eager")(video), backbone(video))


@pytest.mark.parametrize("family", FAMILIES)
def test_art_on_it_learns_is_saved_and_loaded(family, tmp_path, video):
    folder = saved(library(family), tmp_path / "theirs")
    options = {"backbone_options": {**OPTIONS[family], "input_size": 24}, "latent_dim": 16, "pretrained": folder}
    model = ARTModel(["walk", "run", "jump"], family, 4, num_heads=2, **options)
    model.loss(model(video), torch.tensor([0, 2])).total.backward()
    assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    model.save_pretrained(tmp_path / "ours")
    (tmp_path / "theirs").rename(tmp_path / "gone")
    with torch.no_grad():
        assert_close(ARTModel.from_pretrained(tmp_path / "ours")(video).logits, model.eval()(video).logits)
