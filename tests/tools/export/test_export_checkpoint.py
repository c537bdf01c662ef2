"""`art export`, and its files where this package, or torch, is not installed."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from art import load_model
from art.cli import main
from art.tools.export import export_checkpoint, read_facts
from art.tools.export.model import FORMATS

ROOT = Path(__file__).parents[3]
needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra [onnx] is not installed")


def without(modules, program, *arguments):
    """What a program prints in a process where some modules cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); "
    command = [sys.executable, "-c", block + program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def onnx_file(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_checkpoint(run, path, "onnx", outputs=("logits", "class_token", "maps"))
    return path


@needs_onnx
def test_onnx_holds_standard_operators_and_the_facts(onnx_file, run):
    import onnx

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""} and len(model.functions) == 0
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]
    sizes = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert isinstance(sizes[0], str) and sizes[1:] == [3, 3, 112, 112]
    facts, saved = read_facts(onnx_file), load_model(run / "checkpoints" / "last")
    assert facts["class_names"] == saved.class_names and facts["num_frames"] == 3 and facts["input_size"] == 112
    assert facts["sampling"] == {"kind": "dense", "stride": 2} and facts["crop"]["share"] == 0.9
    assert facts["input"]["dtype"] == "uint8" and list(facts["outputs"]) == ["logits", "class_token", "maps"]
    assert facts["options"]["latent_dim"] == 16 and {"torch", "art", "onnxruntime"} <= set(facts["versions"])
    assert facts["check"]["clips"] == 3 and 0 < max(facts["check"]["difference"].values()) <= 1e-4


@needs_onnx
def test_onnx_says_what_the_model_says(onnx_file, run, clips):
    names = ("logits", "class_token", "maps")
    said = FORMATS["onnx"].open(onnx_file, names)(clips)
    with torch.no_grad():
        expected = load_model(run / "checkpoints" / "last")(clips, return_maps=True)
    for name in names:
        torch.testing.assert_close(said[name], getattr(expected, name), rtol=1e-4, atol=1e-4)


@needs_onnx
@pytest.mark.parametrize("clip", ["0.mp4", "2.mp4"])
def test_the_script_predicts_without_torch(onnx_file, run, clip):
    program = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    script, video = ROOT / "examples" / "onnx_predict.py", run / "data" / clip
    told = without(["torch", "art", "art_kernels"], program, script, onnx_file, video)
    lines = [line.split("%") for line in told.splitlines()]
    expected = load_model(run / "checkpoints" / "last").predict(video)
    assert [name.strip() for _, name in lines] == [name for name, _ in expected]
    assert [float(share) for share, _ in lines] == pytest.approx([100 * p for _, p in expected], abs=0.02)


def test_the_command_writes_a_program_that_needs_torch_alone(run, tmp_path, capsys):
    out, clip = tmp_path / "new" / "model.pt2", run / "data" / "1.mp4"
    arguments = ["export", "--checkpoint", run, "--format", "torch", "--out", out, "--clips", clip]
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    assert "checked on 1 clips, 1, 2, 4 at once: differs from the model by logits" in printed
    assert f"written to {out}" in printed and [path.name for path in out.parent.iterdir()] == ["model.pt2"]
    program = (
        "import json, torch; extra = {'art.json': ''}; program = torch.export.load(sys.argv[1], extra_files=extra);"
        "video = (torch.arange(3 * 3 * 112 * 112) % 251).to(torch.uint8).view(1, 3, 3, 112, 112);"
        "print(json.loads(extra['art.json'])['class_names'][3]);"
        "print(program.module()(video=video)['logits'].tolist())"
    )
    name, logits = without(["art", "art_kernels"], program, out).splitlines()
    video = (torch.arange(3 * 3 * 112 * 112) % 251).to(torch.uint8).view(1, 3, 3, 112, 112)
    with torch.no_grad():
        expected = load_model(run / "checkpoints" / "last")(video).logits
    assert name == "kick"
    torch.testing.assert_close(torch.tensor(json.loads(logits)), expected, rtol=1e-4, atol=1e-4)


def test_clips_to_check_with_must_be_there(run, make_art, tmp_path):
    make_art().save_pretrained(tmp_path / "alone")
    with pytest.raises(ValueError, match=r"lies in no run .* --clips"):
        export_checkpoint(tmp_path / "alone", tmp_path / "m.pt2", "torch")
    with pytest.raises(FileNotFoundError, match="checkpoint: no"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "m.pt2", "torch")
    moved = tmp_path / "run"
    (moved / "checkpoints").mkdir(parents=True)
    (tmp_path / "alone").rename(moved / "checkpoints" / "last")
    config = (run / "config.yaml").read_text().replace(str(run / "data"), str(tmp_path / "gone"))
    (moved / "config.yaml").write_text(config)
    with pytest.raises(ValueError, match=r"those of the run are not there .* --clips"):
        export_checkpoint(moved, tmp_path / "m.pt2", "torch")
    assert not (tmp_path / "m.pt2").exists()
