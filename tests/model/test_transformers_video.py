"""``videomae``, ``vivit``, and ``timesformer`` compared with transformers, with small models and random weights."""

import json
from importlib.util import find_spec

import pytest
import torch
from torch.testing import assert_close

from art import build_backbone
from art.extras import import_extra

if find_spec("transformers") is None:
    pytest.skip("the extra [transformers] is not installed", allow_module_level=True)
transformers = import_extra("transformers", extra="transformers", needed_by="these tests")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {"videomae": {"patch_size": 8}, "vivit": {"tubelet_size": [2, 8, 8]}, "timesformer": {"patch_size": 8}}
OPTIONS = {family: {**SMALL, **patches} for family, patches in PATCHES.items()}
NAMES = {"videomae": "VideoMAE", "vivit": "Vivit", "timesformer": "Timesformer"}
FAMILIES = list(NAMES)
TUBELETS = {"videomae": 2, "vivit": 2, "timesformer": 1}
MEAN_STD = {
    "videomae": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "vivit": (0.5, 0.5),
    "timesformer": (0.45, 0.225),
}


def make(family, **options):
    torch.manual_seed(0)
    options = {"num_frames": 4, "input_size": 24, **OPTIONS[family], **options}
    return build_backbone(family, **options).eval()


def make_from(family, directory, **options):
    return make(family, pretrained=directory, **options)


def perturb(model):
    """Change positions, biases, and class tokens, which are zero initially."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def make_reference(family, **options):
    """Return the classifier of transformers of the same size."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{NAMES[family]}Config")
    options = {"num_frames": 4, "image_size": 24, "num_labels": 3, **OPTIONS[family], **options}
    model = getattr(transformers, f"{NAMES[family]}ForVideoClassification")(config(**options)).eval()
    perturb(model)
    return model


def save(model, directory):
    model.save_pretrained(directory)
    return str(directory)


def normalize(family, video):
    mean, std = (torch.tensor(values).expand(3)[:, None, None] for values in MEAN_STD[family])
    return (video - mean) / std


@pytest.fixture
def video():
    return torch.rand(2, 4, 3, 24, 24, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_match_transformers(family, tmp_path, video):
    reference = make_reference(family)
    backbone = make_from(family, save(reference, tmp_path))
    with torch.no_grad():
        tokens, class_token, grid = backbone(video)
        pixels = normalize(family, video)
        hidden = reference.base_model(pixels).last_hidden_state
        assert_close(reference.classifier(class_token), reference(pixels).logits)
    assert grid == (3, 3)
    assert tokens.shape == (2, 4, 9, 16)
    # In the order of transformers: VideoMAE has no class token, and time is innermost in TimeSformer.
    distinct = tokens[:, :: TUBELETS[family]]
    in_order = distinct.transpose(1, 2) if family == "timesformer" else distinct
    assert_close(in_order.flatten(1, 2), hidden if family == "videomae" else hidden[:, 1:])
    assert_close(tokens, distinct.repeat_interleave(TUBELETS[family], dim=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_video_shapes(family):
    backbone = make(family)
    with pytest.raises(ValueError, match=r"6 frames per clip.*expected 4.*num_frames=6"):
        backbone(torch.rand(1, 6, 3, 24, 24))
    with pytest.raises(ValueError, match=r"32×24 pixels.*expected 24×24"):
        backbone(torch.rand(1, 4, 3, 32, 24))


# Checkpoints.


@pytest.mark.parametrize("attention", ["divided_space_time", "joint_space_time"])
@pytest.mark.parametrize(("num_frames", "size"), [(4, 24), (6, 40)])
def test_timesformer_attention_and_interpolated_positions_match_transformers(attention, num_frames, size, tmp_path):
    reference = make_reference("timesformer", attention_type=attention)
    options = {"num_frames": num_frames, "input_size": size, "attention_type": attention, "hidden_dropout_prob": 0.1}
    backbone = make_from("timesformer", save(reference, tmp_path), **options)
    assert backbone.model.config.hidden_dropout_prob == 0.1, "options of training may differ"
    # With other sizes than its own, the reference interpolates in each forward pass.
    reference.config.num_frames, reference.config.image_size = num_frames, size
    video = torch.rand(2, num_frames, 3, size, size)
    with torch.no_grad():
        expected = reference(normalize("timesformer", video)).logits
        assert_close(reference.classifier(backbone(video).class_token), expected)


def test_videomae_positions_extend_to_more_frames(tmp_path):
    directory = save(make_reference("videomae"), tmp_path)
    few, more = (make_from("videomae", directory, num_frames=n) for n in (4, 8))
    table = more.model.base_model.embeddings.position_embeddings
    assert_close(table[:, :18], few.model.base_model.embeddings.position_embeddings)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("videomae", {"input_size": 32}, r"image_size is 24, here 32. Matching options: input_size=24"),
        ("vivit", {"input_size": 32}, r"image_size is 24, here 32"),
        ("vivit", {"num_frames": 6}, r"num_frames is 4, here 6. Matching options: num_frames=4"),
        # The weights have the same shapes; only the configuration differs.
        ("videomae", {"num_attention_heads": 4}, r"num_attention_heads is 2, here 4"),
        ("timesformer", {"hidden_act": "relu"}, r"hidden_act is gelu, here relu. Matching options: hidden_act='gelu'"),
        ("vivit", {"hidden_size": 32, "num_hidden_layers": 1}, r"hidden_size is 16, here 32, num_hidden_layers is 2"),
    ],
)
def test_architecture_mismatch(family, options, message, tmp_path):
    directory = save(make_reference(family), tmp_path)
    with pytest.raises(ValueError, match=message):
        make_from(family, directory, **options)


def test_checkpoints_of_another_family_or_with_missing_weights(tmp_path):
    with pytest.raises(ValueError, match="a checkpoint of 'vivit', expected one of 'timesformer'"):
        make_from("timesformer", save(make_reference("vivit"), tmp_path))
    reference = make_reference("timesformer")
    del reference.timesformer.layernorm
    with pytest.raises(ValueError, match=r"2 missing: timesformer\.layernorm\.bias, timesformer\.layernorm\.weight"):
        make_from("timesformer", save(reference, tmp_path))


def test_checkpoint_of_mother_pretraining(tmp_path, video):
    options = {**OPTIONS["videomae"], "use_mean_pooling": False}
    torch.manual_seed(1)
    decoder = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 1}
    config = transformers.VideoMAEConfig(num_frames=4, image_size=24, **options, **decoder)
    reference = transformers.VideoMAEForPreTraining(config).eval()
    backbone = make_from("videomae", save(reference, tmp_path), use_mean_pooling=False)
    with torch.no_grad():
        hidden = reference.videomae(normalize("videomae", video)).last_hidden_state
        tokens, class_token, _ = backbone(video)
    assert_close(tokens[:, ::2].flatten(1, 2), hidden)
    assert_close(class_token, hidden.mean(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_without_classifier(family, tmp_path):
    reference = getattr(transformers, f"{NAMES[family]}Model")(make_reference(family).config)  # ViViT has a pooler
    perturb(reference)
    ours = make_from(family, save(reference, tmp_path)).model.base_model.state_dict()
    assert_close(ours, {n: v for n, v in reference.state_dict().items() if not n.startswith("pooler.")})


def test_mean_and_std_of_the_checkpoint(tmp_path):
    directory = save(make_reference("videomae"), tmp_path)
    config = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert_close(make_from("videomae", directory).image_mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    other = make_from("videomae", directory, image_std=[1.0, 1.0, 1.0])
    assert_close(other.image_std.flatten(), torch.ones(3))
    assert_close(other.image_mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))


# Invalid requests.


@pytest.mark.parametrize(
    ("family", "options", "error", "message"),
    [
        (
            "videomae",
            {"hiden_size": 8},
            TypeError,
            r"VideoMAEConfig has no .*'hiden_size'.*did you mean 'hidden_size'",
        ),
        ("videomae", {"num_frames": 1}, ValueError, r"num_frames is 1, expected a multiple of the 2 frames.*such as 2"),
        ("vivit", {"num_frames": 5}, ValueError, r"num_frames is 5, .* multiple of the 2 frames.*such as 4 or 6"),
        *((name, {"input_size": 30}, ValueError, r"30, expected a multiple of the patch size, 8") for name in FAMILIES),
        ("videomae", {"image_size": 8}, TypeError, r"no configurable field 'image_size'; did you mean 'input_size'"),
        ("vivit", {"hidden_size": "wide"}, ValueError, r"VivitConfig: .*'hidden_size' expected int, got str"),
        ("vivit", {"hidden_size": 15}, ValueError, r"hidden_size is 15, expected a multiple of num_attention_heads, 2"),
        ("vivit", {"tubelet_size": [2, 8, 4]}, ValueError, r"a patch has \[8, 4\] pixels, expected a square"),
        ("timesformer", {"attention_type": "space_only"}, ValueError, "expected 'divided_space_time'"),
        ("timesformer", {"pretrained": "nowhere"}, FileNotFoundError, "'nowhere': expected a directory"),
    ],
)
def test_invalid_options(family, options, error, message):
    with pytest.raises(error, match=message):
        make(family, **options)
