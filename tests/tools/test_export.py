"""`art.tools.export`: outputs of exported files vs. the model, facts, and programs without this package or torch."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from art import BackboneClassifier, load_model
from art.backbones import tea
from art.cli import main
from art.data.decoding.video import VideoError
from art.data.motion.render import write_video
from art.data.transforms.sampling import FrameSampling
from art.heads import ProbeClassifier
from art.tools.export import FORMATS, OUTPUTS, export_checkpoint, export_model, formats, read_facts
from art.tools.export import model as model_export
from art.tools.export.model import ExportMismatch, trace
from art.train.config import load_config, save_config
from art_kernels._core.backends import ENVIRONMENT_VARIABLE

ROOT = Path(__file__).parents[2]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "input_size": 24}
UNIFORMER = {"width": 24, "layers": 2, "heads": 3, "patch_size": 8, "input_size": 24, "global_blocks": [1]}
#: The library that each backbone requires, and options of a small model.
BACKBONES = {
    "tiny": (None, {"width": 4, "depth": [1, 1, 1]}),
    "uniformerv2_b16": (None, {**UNIFORMER, "local_mhra": 1, "temporal_downsample": True}),
    "tea50": (None, {}),
    "clip_vit": ("open_clip", {"model": "small-export-vit"}),
    "timm_vit": ("timm", {"model": "test_vit", "input_size": 32}),
    "videomae": ("transformers", {**TINY, "patch_size": 8}),
    "vivit": ("transformers", {**TINY, "tubelet_size": [2, 8, 8]}),
    "timesformer": ("transformers", {**TINY, "patch_size": 8}),
    "vjepa2": ("transformers", {**{k: v for k, v in TINY.items() if k != "intermediate_size"}, "patch_size": 8}),
    "dinov3": ("transformers", {**TINY, "patch_size": 8}),
}
#: Exported to ONNX, to cover each kind of graph: convolutions and temporal positions, and blocks of another library.
ONNX_BACKBONES = ("uniformerv2_b16", "timm_vit")

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra [onnx] is not installed")


def fill_zeros(model):
    """Redraw parameters that are initialized to zero, which would hide their effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return model.eval()


@pytest.fixture(scope="session")
def make_art(make_model):
    return lambda **options: fill_zeros(make_model(**options))


def random_clips(count):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, 3, 112, 112), dtype=torch.uint8, generator=generator)


def run_without(modules, program, *arguments):
    """Return the output of a Python program in a process in which some modules cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); "
    command = [sys.executable, "-c", block + program, *map(str, arguments)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def run_dir(make_art, tmp_path_factory):
    """A run directory; its test split has three clips, ``data/0.mp4`` to ``data/2.mp4``."""
    directory = tmp_path_factory.mktemp("run")
    data = directory / "data"
    data.mkdir()
    model = make_art(test_crop=0.9)
    (data / "classes.txt").write_text("".join(f"{name}\n" for name in model.class_names))
    for seed in range(3):
        blocks = np.random.default_rng(seed).integers(0, 256, (9, 9, 11, 3))
        write_video(data / f"{seed}.mp4", np.kron(blocks, np.ones((1, 16, 16, 1))).astype(np.uint8), fps=12)
    (data / "test.csv").write_text("path,label\n" + "".join(f"{i}.mp4,{i}\n" for i in range(3)))
    save_config(load_config(None, ["data.name=csv", f"data.root={data}"]), directory / "config.yaml")
    model.sampling = FrameSampling("dense", 2)
    model.save_pretrained(directory / "checkpoints" / "last")
    return directory


@pytest.fixture(scope="module")
def onnx_file(run_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_checkpoint(run_dir, path, "onnx", outputs=OUTPUTS)
    return path


@pytest.mark.slow
@needs_onnx
def test_onnx_file_has_standard_operators_and_facts(onnx_file, run_dir):
    import onnx

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""} and len(model.functions) == 0
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]
    sizes = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert isinstance(sizes[0], str) and sizes[1:] == [3, 3, 112, 112]
    facts, saved = read_facts(onnx_file), load_model(run_dir / "checkpoints" / "last")
    assert facts["class_names"] == saved.class_names and facts["num_frames"] == 3 and facts["input_size"] == 112
    assert facts["sampling"] == {"kind": "dense", "stride": 2} and facts["crop"]["share"] == 0.9
    assert facts["input"]["dtype"] == "uint8" and tuple(facts["outputs"]) == OUTPUTS
    assert facts["options"]["latent_dim"] == 16 and {"torch", "art", "onnxruntime"} <= set(facts["versions"])
    assert facts["check"]["clips"] == 3 and 0 < max(facts["check"]["difference"].values()) <= 1e-4


@pytest.mark.slow
@needs_onnx
def test_onnx_outputs_match_the_model(onnx_file, run_dir):
    video = random_clips(3)
    outputs = FORMATS["onnx"].open(onnx_file, OUTPUTS)(video)
    with torch.no_grad():
        expected = load_model(run_dir / "checkpoints" / "last")(video, return_maps=True)
    for name in OUTPUTS:
        torch.testing.assert_close(outputs[name], getattr(expected, name), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("clip", ["0.mp4", "2.mp4"])
def test_onnx_example_predicts_without_torch(onnx_file, run_dir, clip):
    program = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    script, video = ROOT / "examples" / "onnx_predict.py", run_dir / "data" / clip
    output = run_without(["torch", "art", "art_kernels"], program, script, onnx_file, video)
    lines = [line.split("%") for line in output.splitlines()]
    expected = load_model(run_dir / "checkpoints" / "last").predict(video)
    assert [name.strip() for _, name in lines] == [name.strip() for name, _ in expected]
    assert [float(percentage) for percentage, _ in lines] == pytest.approx([100 * p for _, p in expected], abs=0.02)


@pytest.mark.slow
def test_command_writes_a_program_that_requires_only_torch(run_dir, tmp_path, capsys):
    out, clip = tmp_path / "new" / "model.pt2", run_dir / "data" / "1.mp4"
    arguments = ["export", "--checkpoint", run_dir, "--format", "torch", "--out", out, "--clips", clip]
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    assert "checked on 1 clip " in printed and "differs from the model by logits" in printed
    assert f"written to {out}" in printed and [path.name for path in out.parent.iterdir()] == ["model.pt2"]
    program = (
        "import json, torch; extra = {'art.json': ''}; program = torch.export.load(sys.argv[1], extra_files=extra);"
        "video = (torch.arange(3 * 3 * 112 * 112) % 251).to(torch.uint8).view(1, 3, 3, 112, 112);"
        "print(json.loads(extra['art.json'])['class_names'][3]);"
        "print(program.module()(video=video)['logits'].tolist())"
    )
    name, logits = run_without(["art", "art_kernels"], program, out).splitlines()
    video = (torch.arange(3 * 3 * 112 * 112) % 251).to(torch.uint8).view(1, 3, 3, 112, 112)
    with torch.no_grad():
        expected = load_model(run_dir / "checkpoints" / "last")(video).logits
    assert name == load_model(run_dir / "checkpoints" / "last").class_names[3]
    torch.testing.assert_close(torch.tensor(json.loads(logits)), expected, rtol=1e-4, atol=1e-4)


def test_missing_checkpoint_or_clips(make_art, run_dir, tmp_path):
    out = tmp_path / "m.pt2"
    make_art().save_pretrained(tmp_path / "alone")
    with pytest.raises(ValueError, match=r"is not in a run directory.* --clips"):
        export_checkpoint(tmp_path / "alone", out, "torch")
    with pytest.raises(FileNotFoundError, match="checkpoint: no"):
        export_checkpoint(tmp_path / "nowhere", out, "torch")
    moved = tmp_path / "run"
    (moved / "checkpoints").mkdir(parents=True)
    (tmp_path / "alone").rename(moved / "checkpoints" / "last")
    config = (run_dir / "config.yaml").read_text().replace(str(run_dir / "data"), str(tmp_path / "gone"))
    (moved / "config.yaml").write_text(config)
    with pytest.raises(ValueError, match=r"the test split of the run is missing .* --clips"):
        export_checkpoint(moved, out, "torch")
    with pytest.raises(VideoError, match=r"gone\.mp4: there is no such file"):
        export_checkpoint(moved, out, "torch", clips=[tmp_path / "gone.mp4"])
    assert not out.exists()


@pytest.fixture(scope="module")
def small_backbones(tmp_path_factory):
    """Registers a small open_clip model and reduces TEA to one block per stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tea, "DEPTHS", (1, 1, 1, 1))
        patch.setattr(tea, "WIDTH", 4)
        patch.setattr(tea.TEA50, "input_size", 32)
        if find_spec("open_clip") is not None:
            from art.extras import import_extra

            directory = tmp_path_factory.mktemp("configs")
            (directory / "small-export-vit.json").write_text(
                '{"embed_dim": 16, "vision_cfg": {"image_size": 24, "layers": 1, "width": 24, "head_width": 8, '
                '"patch_size": 8}, "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, '
                '"layers": 1}}'
            )
            import_extra("open_clip", extra="clip", needed_by="these tests").add_model_config(directory)
        yield


@pytest.mark.parametrize(
    "name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES if name != "tiny")]
)
def test_backbones(name, small_backbones, tmp_path):
    library, options = BACKBONES[name]
    if library is not None and find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    torch.manual_seed(0)
    model = fill_zeros(BackboneClassifier(["a", "b", "c"], name, num_frames=2, backbone_options=options))
    size = model.input_size
    clips = torch.randint(0, 256, (3, 2, 3, size, size), dtype=torch.uint8)
    file_format = "onnx" if name in ONNX_BACKBONES and find_spec("onnxruntime") is not None else "torch"
    path = tmp_path / f"model{FORMATS[file_format].suffix}"
    check = export_model(model, clips, path, file_format, outputs=("logits", "class_token")).facts["check"]
    assert check["batches"] == [1, 2, 4] and max(check["difference"].values()) <= 1e-4
    run = FORMATS[file_format].open(path, ("logits", "class_token"))
    with torch.no_grad():
        expected = model(clips)  # three clips, a size that is neither traced nor checked
    torch.testing.assert_close(run(clips)["logits"], expected.logits, rtol=1e-4, atol=1e-4)
    assert (expected.logits[0] - expected.logits[1]).abs().max() > 1e-3  # the logits depend on the clip


@pytest.mark.slow
@pytest.mark.parametrize("linking", ["optimal", "greedy"])
def test_linking_by_similarity(make_art, linking):
    model = make_art(linking=linking, num_tracklets=3)
    nn.init.normal_(model.activation.prompts)  # so that the frames differ, and regions swap queries
    graph = trace(model, random_clips(2), ("logits",)).module()
    video = torch.randint(0, 256, (5, 3, 3, 112, 112), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(video)
        torch.testing.assert_close(graph(video=video)["logits"], expected.logits, rtol=1e-4, atol=1e-4)
    assert (expected.order != torch.arange(3)).any()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mean", "ep", "attentive", "art"])
def test_heads_on_frozen_backbones(head, tmp_path):
    torch.manual_seed(0)
    options = {"num_queries": 2} if head == "ep" else {}
    small = {"num_frames": 2, "backbone_options": {"width": 4, "depth": [1, 1, 1]}}
    model = ProbeClassifier(["a", "b", "c"], head=head, head_options=options, **small).eval()
    clips = torch.randint(0, 256, (2, 2, 3, 112, 112), dtype=torch.uint8)
    outputs = ("logits", "class_token", "maps") if model.num_maps else ("logits",)
    exported = export_model(model, clips, tmp_path / "model.pt2", "torch", outputs=outputs)
    assert exported.facts["check"]["batches"] == [1, 2, 4]


def test_backend_is_restored(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "torch")
    for previous in ("torch", None):
        with pytest.raises(KeyError), model_export._reference_backend():
            assert os.environ[ENVIRONMENT_VARIABLE] == "reference"
            raise KeyError
        assert os.environ.get(ENVIRONMENT_VARIABLE) == previous
        monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.mark.slow
def test_operator_of_another_library(make_art, monkeypatch):
    monkeypatch.setattr(model_export, "_reference_backend", torch.no_grad)
    with pytest.raises(RuntimeError, match=r"the graph has the operators art_kernels\."):
        trace(make_art(), random_clips(2), ("logits",))


@pytest.fixture
def fake_export(make_art, monkeypatch):
    """``fake_export(change)`` returns a model whose exported file computes its logits, changed, without tracing."""
    model = make_art()

    def arrange(change):
        def run(video):
            with torch.no_grad():
                return {"logits": change(model(video).logits)}

        monkeypatch.setattr(model_export, "trace", lambda *_: None)
        monkeypatch.setattr(formats.TorchProgram, "write", lambda _, __, ___, path: path.write_text("new export"))
        monkeypatch.setattr(formats.TorchProgram, "open", lambda *_: run)
        return model

    return arrange


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits + 2e-4 * (len(logits) == 4), r"logits of a batch of 4 differs .* by 0\.0002"),
        (lambda logits: logits * torch.nan, "logits of a batch of 1 differs .* by nan"),
    ],
)
def test_file_with_other_outputs_is_removed(change, message, fake_export, tmp_path):
    model, out = fake_export(change), tmp_path / "model.pt2"
    out.write_text("previous export")
    with pytest.raises(ExportMismatch, match=message):
        export_model(model, random_clips(3), out, "torch")
    assert out.read_text() == "previous export"
    assert list(tmp_path.iterdir()) == [out]


def test_all_clips_are_checked(fake_export, tmp_path):
    sizes = []
    model = fake_export(lambda logits: sizes.append(len(logits)) or logits + 5e-5)
    check = export_model(model, random_clips(9), tmp_path / "model.pt2", "torch").facts["check"]
    assert sizes == [1, 2, 4, 4, 1, 1, 2, 4]  # each batch size, then clips 5 to 9; and one clip for the final file
    assert check["difference"]["logits"] == pytest.approx(5e-5, rel=0.01) and check["clips"] == 9


@pytest.mark.parametrize(
    ("out", "file_format", "outputs", "options", "message"),
    [
        ("m.onnx", "torch", ("logits",), {}, r"ends in '\.onnx', expected '\.pt2'"),
        ("m.pt2", "tensorrt", ("logits",), {}, "got 'tensorrt', expected torch or onnx"),
        ("m.pt2", "torch", ("maps",), {}, "expected logits, optionally followed by"),
        ("m.pt2", "torch", ("logits", "boxes"), {}, "got 'logits,boxes'"),
        ("m.pt2", "torch", ("logits", "maps", "maps"), {}, "got 'logits,maps,maps'"),
        ("m.pt2", "torch", (), {}, "expected logits"),
        ("file/m.pt2", "torch", ("logits",), {}, "is not a directory"),
        ("directory.pt2", "torch", ("logits",), {}, "is a directory, expected a file"),
        ("m.pt2", "torch", ("logits",), {"linking": "optimal", "num_tracklets": 7}, "model.linking=index"),
    ],
)
def test_invalid_arguments(make_art, out, file_format, outputs, options, message, tmp_path, monkeypatch):
    monkeypatch.setattr(model_export, "trace", lambda *_: pytest.fail("traced before the arguments were checked"))
    (tmp_path / "file").write_text("")
    (tmp_path / "directory.pt2").mkdir()
    model = make_art()
    for name, value in options.items():
        setattr(model.options, name, value)
    with pytest.raises(ValueError, match=message):
        export_model(model, random_clips(3), tmp_path / out, file_format, outputs=outputs)


def test_no_clips_and_no_maps(make_art, make_model, tmp_path):
    with pytest.raises(ValueError, match="clips: got none"):
        export_model(make_art(), random_clips(0), tmp_path / "m.pt2", "torch")
    with pytest.raises(ValueError, match="has no maps"):
        export_model(make_model("backbone"), random_clips(3), tmp_path / "m.pt2", "torch", outputs=("logits", "maps"))


@needs_onnx
def test_model_too_large_for_onnx():
    FORMATS["onnx"].check(2**30)
    with pytest.raises(ValueError, match=r"3\.0 GiB, and an ONNX file is limited to 2 GiB; choose --format torch"):
        FORMATS["onnx"].check(3 * 2**30)


def test_files_without_facts_and_facts_of_earlier_versions(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_facts(tmp_path / "m.pt2")
    (tmp_path / "m.bin").write_text("")
    with pytest.raises(ValueError, match=r"expected a \.pt2 or \.onnx file"):
        read_facts(tmp_path / "m.bin")
    (tmp_path / "m.onnx").write_text("")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"m\.onnx needs onnx .*: pip install 'art-kernels\[onnx\]'"):
        read_facts(tmp_path / "m.onnx")
    program = torch.export.export(nn.ReLU(), (torch.zeros(1),))
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(ValueError, match="contains no facts"):
        read_facts(tmp_path / "m.pt2")
    FORMATS["torch"].write(program, {"input": {"name": "video", "colours": "RGB"}}, tmp_path / "m.pt2")
    assert read_facts(tmp_path / "m.pt2") == {"input": {"name": "video", "colors": "RGB"}}
