"""Files that say what the model says, for every backbone, or no files."""

import os
from importlib.util import find_spec

import pytest
import torch

from art import BackboneClassifier
from art.backbones import tea
from art.tools.export import FORMATS, export_model, formats, program, read_facts
from art.tools.export.model import ExportMismatch
from art.tools.export.program import trace
from art_kernels._core.backends import ENVIRONMENT_VARIABLE

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "input_size": 24}
UNIFORMER = {"width": 24, "layers": 2, "heads": 3, "patch_size": 8, "input_size": 24, "global_blocks": [1]}
BACKBONES = {
    "tiny": (None, {"width": 4, "depth": [1, 1, 1]}),
    "uniformerv2_b16": (None, {**UNIFORMER, "local_mhra": 1, "temporal_downsample": True}),
    "tea50": (None, {}),
    "clip_vit": ("open_clip", {"model": "small-export-vit"}),
    "timm_vit": ("timm", {"model": "test_vit", "input_size": 32}),
    "videomae": ("transformers", {**TINY, "patch_size": 8}),
    "vivit": ("transformers", {**TINY, "tubelet_size": [2, 8, 8]}),
    "timesformer": ("transformers", {**TINY, "patch_size": 8}),
}
#: Through the whole of ONNX go those whose graphs differ in kind: convolutions, positions in time, a library's blocks.
IN_ONNX = ("uniformerv2_b16", "timm_vit")

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra [onnx] is not installed")


@pytest.fixture(scope="module")
def small_backbones(tmp_path_factory):
    """A small model of open_clip, and a TEA with one block a stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tea, "DEPTHS", (1, 1, 1, 1))
        patch.setattr(tea, "WIDTH", 4)
        patch.setattr(tea.TEA50, "input_size", 32)
        if find_spec("open_clip") is not None:
            from art.extras import import_extra

            folder = tmp_path_factory.mktemp("configs")
            (folder / "small-export-vit.json").write_text(
                '{"embed_dim": 16, "vision_cfg": {"image_size": 24, "layers": 1, "width": 24, "head_width": 8, '
                '"patch_size": 8}, "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, '
                '"layers": 1}}'
            )
            import_extra("open_clip", extra="clip", needed_by="these tests").add_model_config(folder)
        yield


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_exported(name, small_backbones, no_zeros, tmp_path):
    library, options = BACKBONES[name]
    if library is not None and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    torch.manual_seed(0)
    model = no_zeros(BackboneClassifier(["a", "b", "c"], name, num_frames=2, backbone_options=options))
    size = model.input_size
    clips = torch.randint(0, 256, (3, 2, 3, size, size), dtype=torch.uint8)
    in_onnx = name in IN_ONNX and find_spec("onnxruntime") is not None
    path = tmp_path / f"model{'.onnx' if in_onnx else '.pt2'}"
    exported = export_model(model, clips, path, "onnx" if in_onnx else "torch", outputs=("logits", "class_token"))
    assert exported.facts["check"]["batches"] == [1, 2, 4]
    assert max(exported.facts["check"]["difference"].values()) <= 1e-4
    run = FORMATS["onnx" if in_onnx else "torch"].open(path, ("logits", "class_token"))
    with torch.no_grad():
        expected = model(clips)  # three clips, which neither the trace nor the check had
    torch.testing.assert_close(run(clips)["logits"], expected.logits, rtol=1e-4, atol=1e-4)
    assert (expected.logits[0] - expected.logits[1]).abs().max() > 1e-3  # it does depend on the clip


@pytest.mark.parametrize("linking", ["optimal", "greedy"])
def test_linking_by_similarity_lists_matchings(linking, make_art, clips):
    model = make_art(linking=linking, num_tracklets=3)
    torch.nn.init.normal_(model.activation.prompts)  # each frame asks otherwise, and queries swap regions
    graph = trace(model, clips[:2], ("logits",)).module()
    video = torch.randint(0, 256, (5, 3, 3, 112, 112), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(video)
        torch.testing.assert_close(graph(video=video)["logits"], expected.logits, rtol=1e-4, atol=1e-4)
    assert (expected.order != torch.arange(3)).any()  # some are matched across queries


def test_the_choice_of_backend_is_put_back(monkeypatch):
    for before in ("native", None):
        if before is None:
            monkeypatch.delenv(ENVIRONMENT_VARIABLE)
        else:
            monkeypatch.setenv(ENVIRONMENT_VARIABLE, before)
        with pytest.raises(KeyError), program._definitions():
            assert os.environ[ENVIRONMENT_VARIABLE] == "reference"
            raise KeyError
        assert os.environ.get(ENVIRONMENT_VARIABLE) == before


def test_an_operator_of_another_library_is_an_error(make_art, clips, monkeypatch):
    monkeypatch.setattr(program, "_definitions", torch.no_grad)
    with pytest.raises(RuntimeError, match=r"the graph holds art_kernels\."):
        trace(make_art(), clips[:2], ("logits",))


@pytest.fixture
def answering(monkeypatch, make_art):
    """``answering(change)``: files of the torch format say what the model says, changed; nothing is traced."""
    model = make_art()

    def arrange(change):
        monkeypatch.setattr("art.tools.export.model.trace", lambda *_: None)
        monkeypatch.setattr(formats.TorchProgram, "write", lambda _, __, ___, path: path.write_text("a new export"))

        def run(video):
            with torch.no_grad():
                return {"logits": change(model(video).logits)}

        monkeypatch.setattr(formats.TorchProgram, "open", lambda *_: run)
        return model

    return arrange


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda logits: logits + 2e-4 * (len(logits) == 4), r"with 4 clips at once logits differs by 0\.0002"),
        (lambda logits: logits * torch.nan, "with 1 clips at once logits differs by nan"),
    ],
)
def test_a_file_that_says_something_else_is_not_kept(change, told, answering, clips, tmp_path):
    model, out = answering(change), tmp_path / "model.pt2"
    out.write_text("a former export")
    with pytest.raises(ExportMismatch, match=told):
        export_model(model, clips, out, "torch")
    assert out.read_text() == "a former export"
    assert list(tmp_path.iterdir()) == [out]


def test_every_clip_that_is_given_takes_part(answering, clips, tmp_path):
    calls = []
    model = answering(lambda logits: calls.append(len(logits)) or logits + 5e-5)
    found = export_model(model, clips.repeat(3, 1, 1, 1, 1), tmp_path / "model.pt2", "torch").facts["check"]
    assert calls == [1, 2, 4, 4, 1, 1, 2, 4]  # nine clips beside the sizes; then the final file on one
    assert found["difference"]["logits"] == pytest.approx(5e-5, rel=0.01) and found["clips"] == 9


@pytest.fixture
def no_work(monkeypatch):
    def work(*_):
        raise AssertionError("it was traced")

    monkeypatch.setattr("art.tools.export.model.trace", work)


@pytest.mark.parametrize(
    ("out", "file_format", "outputs", "options", "told"),
    [
        ("m.onnx", "torch", ("logits",), {}, r"ends in '\.onnx', expected '\.pt2'"),
        ("m.pt2", "tensorrt", ("logits",), {}, "got 'tensorrt', expected torch or onnx"),
        ("m.pt2", "torch", ("maps",), {}, "expected logits and after it"),
        ("m.pt2", "torch", ("logits", "boxes"), {}, "got 'logits,boxes'"),
        ("m.pt2", "torch", ("logits", "maps", "maps"), {}, "got 'logits,maps,maps'"),
        ("m.pt2", "torch", (), {}, "expected logits"),
        ("file/m.pt2", "torch", ("logits",), {}, "is no folder"),
        ("m.pt2", "torch", ("logits",), {"linking": "optimal", "num_tracklets": 7}, "model.linking=index"),
    ],
)
def test_bad_input_stops_before_any_work(out, file_format, outputs, options, told, make_art, clips, tmp_path, no_work):
    (tmp_path / "file").write_text("")
    names = [f"class {i}" for i in range(8)]
    model = make_art()
    for name, value in options.items():
        setattr(model.options, name, value)
    model.class_names = names
    with pytest.raises(ValueError, match=told):
        export_model(model, clips, tmp_path / out, file_format, outputs=outputs)


def test_more_bad_input(make_art, clips, tmp_path, no_work):
    with pytest.raises(ValueError, match="clips: got none"):
        export_model(make_art(), clips[:0], tmp_path / "m.pt2", "torch")
    (tmp_path / "d.pt2").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        export_model(make_art(), clips, tmp_path / "d.pt2", "torch")
    backbone = BackboneClassifier(["a", "b"], num_frames=3, backbone_options={"width": 4, "depth": [1, 1, 1]})
    with pytest.raises(ValueError, match="has no response maps"):
        export_model(backbone, clips, tmp_path / "m.pt2", "torch", outputs=("logits", "maps"))


@needs_onnx
def test_a_model_too_large_for_onnx():
    FORMATS["onnx"].check(2**30)
    with pytest.raises(ValueError, match=r"3\.0 GiB, and an ONNX file holds at most 2; choose --format torch"):
        FORMATS["onnx"].check(3 * 2**30)


def test_facts_are_read_from_our_files_only(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_facts(tmp_path / "m.pt2")
    (tmp_path / "m.bin").write_text("")
    with pytest.raises(ValueError, match=r"expected a \.pt2 or \.onnx file"):
        read_facts(tmp_path / "m.bin")
