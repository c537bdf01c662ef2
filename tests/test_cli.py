"""The command line, from its help to all commands on a small motion dataset with the real model."""

import json
import subprocess
import sys

import numpy as np
import pytest

import art
from art.cli import main
from art.data.datasets import base as registry
from art.data.decoding.video import read_frames
from art.data.motion.render import write_video
from art.parser import DATASETS

COMMANDS = (
    "prepare", "shards", "train", "evaluate", "score", "predict", "explain", "bank", "serve", "export", "extract",
    "features", "probe", "compare", "ablate", "profile",
)  # fmt: skip


def run(capsys, *arguments):
    """Return exit code, standard output, and standard error of ``art …``."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as ending:
        code = ending.code
    return code, *capsys.readouterr()


def test_without_arguments_prints_help(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    assert all(f"\n    {command} " in out for command in COMMANDS)
    assert "exit codes" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_has_an_example(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert "\nexample" in out and f":\n  art {command} " in out


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, f"art {art.__version__}\n")


def test_help_imports_no_large_library():
    """``art/__init__.py`` is replaced by an empty package."""
    program = (
        "import sys, types; package = types.ModuleType('art'); package.__path__ = [sys.argv[1]];"
        "sys.modules['art'] = package; from art.parser import build_parser; build_parser().format_help();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'omegaconf')))"
    )
    assert subprocess.run([sys.executable, "-c", program, art.__path__[0]], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "config: no file nowhere.yaml"),
        (["train", "CONFIG", "optim.lrr=1"], "optim.lrr: unknown key"),
        (["train", "CONFIG", "--overwrite", "optim.lrr=1"], "optim.lrr: unknown key"),
        (["train", "CONFIG", "--resume"], "no run to resume"),
        (["train", "CONFIG", "--resume", "--overwrite"], "at most one"),
        (["train", "CONFIG", "data.root=nowhere"], "nowhere"),
        (["train", "CONFIG", "data.name=moton"], "did you mean 'motion'?"),
        (["evaluate", "--checkpoint", "nowhere"], "checkpoint: no config.json in nowhere"),
        (["predict", "a.mp4", "--checkpoint", "nowhere"], "checkpoint: no config.json in nowhere"),
        (["predict", "a.mp4", "--checkpoint", "nowhere", "--top-k", "0"], "--top-k: got 0"),
        (["predict", "a.mp4", "--checkpoint", "nowhere", "--views", "0"], "--views: got 0"),
        (["predict", "a.mp4", "--checkpoint", "nowhere", "--crops", "2"], "--crops: got 2, expected 1 or 3"),
        (["score", "nowhere.npz"], "nowhere.npz: no such file; expected a predictions.npz"),
        (["score", "run.yaml"], "run.yaml: not a NumPy archive of predictions"),
        (["compare", "CONFIG", "--seeds", "0"], "seeds: got 0"),
        (["compare", "CONFIG", "--over", "model.linkin=index,optimal"], "model.linkin: unknown key"),
        (["compare", "CONFIG", "--over", "model.linking=index"], "model.linking: got 1 values"),
        (["ablate", "CONFIG", "--seeds", "0"], "seeds: got 0"),
        (["ablate", "CONFIG", "--only", "bank,K"], "only: got 'K', expected some of components"),
        (["ablate", "CONFIG", "--devices", "cpu,gpu"], "device: got 'gpu'"),
        (["ablate", "CONFIG", "--devices", "cpu,cpu"], "devices: got cpu twice"),
        (["ablate", "CONFIG", "--jobs", "0"], "jobs: got 0"),
        (["prepare", "motion", "--root", "x", "--size", "33"], "size must be even"),
        (["prepare", "motion", "--root", "x", "--check", "open"], "--check is not for 'motion'"),
        (["prepare", "csv", "--root", "x", "--train-per-class", "3"], "--train-per-class is for 'motion' only"),
        (["prepare", "csv", "--root", "x", "--cut"], "--cut needs --to DIR"),
        (
            ["prepare", "csv", "--root", "x", "--max-failed-fraction", "2"],
            "--max-failed-fraction must be in 0..1",
        ),
        (["prepare", "csv", "--root", "nowhere"], "root nowhere does not exist"),
        (["prepare", "csv", "--root", ".", "--to", "new", "--crf", "60"], "crf must be in 0..51, got 60"),
        (["prepare", "finegym9", "--root", "."], "did you mean 'finegym99'?"),
        (["prepare", "shards", "--root", "."], "check the dataset that they are written from"),
        (["profile", "CONFIG", "--clips", "0"], "clips: got 0, expected at least 1"),
        (["profile", "CONFIG", "--classes", "1"], "class_names has 1 names, expected at least 2"),
        (["profile", "CONFIG", "model.backbone=tinny"], "did you mean 'tiny'?"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("device: cpu\n")
    code, out, err = run(capsys, *("run.yaml" if argument == "CONFIG" else argument for argument in arguments))
    assert code == 2
    assert out == ""
    assert err.startswith("art: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_traceback_option(capsys):
    code, _, err = run(capsys, "--traceback", "train", "nowhere.yaml")
    assert code == 2
    assert "Traceback" in err
    assert "art: error: config: no file nowhere.yaml" in err


@pytest.mark.parametrize("arguments", [["train"], ["nonsense"], ["train", "c.yaml", "--fast"], ["predict", "a.mp4"]])
def test_invalid_usage_is_exit_code_2(capsys, arguments):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "usage: art" in err


def test_bugs_print_a_traceback(capsys, monkeypatch):
    monkeypatch.setattr("art.train.config.load_config", lambda *_: 1 / 0)
    code, _, err = run(capsys, "train", "c.yaml")
    assert code == 1
    assert "ZeroDivisionError" in err


def test_keyboard_interrupt_is_exit_code_130(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("art.train.config.load_config", interrupt)
    assert run(capsys, "train", "c.yaml")[0] == 130


def test_prepare_lists_every_dataset():
    assert sorted([*DATASETS, "shards"]) == sorted(registry._BUILT_IN)


@pytest.fixture
def clips(tmp_path, monkeypatch):
    """Four clips in a table, one of them missing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for i in range(3):
        write_video(tmp_path / f"mine/{i}.mp4", np.zeros((15, 32, 64, 3), np.uint8), fps=12)
    (tmp_path / "mine/train.csv").write_text("path,label\n" + "".join(f"{i}.mp4,{i % 2}\n" for i in range(4)))
    return tmp_path


def test_prepare_reports_missing_clips(capsys, clips):
    code, out, _ = run(capsys, "prepare", "csv", "--root", "mine", "--workers", "1")
    assert code == 1
    assert "1 clip missing: there is no such file\n    3.mp4" in out
    assert "details: runs/prepare-csv/prepare.json" in out
    content = json.loads((clips / "runs/prepare-csv/prepare.json").read_text())
    assert content["check"] == "open"
    assert content["splits"]["train"]["missing"] == 1
    options = ("--workers", "1", "--out", "there", "--check", "exist")
    assert run(capsys, "prepare", "csv", "--root", "mine", *options, "--max-failed-fraction", "0.25")[0] == 0
    assert run(capsys, "prepare", "csv", "--root", "mine", *options, "--max-bad-share", "0.24")[0] == 1
    assert json.loads((clips / "there/prepare.json").read_text())["check"] == "exist"
    assert sorted(path.name for path in (clips / "mine").iterdir()) == ["0.mp4", "1.mp4", "2.mp4", "train.csv"]


def test_prepare_reencodes_videos(capsys, clips):
    options = ("--to", "small", "--short-side", "16", "--keyframe-every", "5", "--workers", "1")
    code, out, _ = run(capsys, "prepare", "csv", "--root", "mine", *options)
    assert code == 1
    assert "small: 3 videos written, 0 already existed" in out
    assert json.loads((clips / "small/prepare.json").read_text())["splits"]["train"]["missing"] == 1
    assert read_frames(clips / "small/0.mp4").shape == (15, 3, 16, 32)
    assert "0 videos written, 3 already existed" in run(capsys, "prepare", "csv", "--root", "mine", *options)[1]
    (clips / "mine/3.mp4").write_bytes((clips / "mine/0.mp4").read_bytes())
    code, out, _ = run(capsys, "prepare", "csv", "--root", "mine", *options)
    assert (code, "1 video written, 3 already existed" in out) == (0, True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Directory with a tiny motion dataset, a configuration, and a run of ``art train``."""
    pytest.importorskip("pybullet", reason="the motion dataset is rendered by pybullet, which is not installed")
    workspace = tmp_path_factory.mktemp("workspace")
    arguments = ["--size", "32", "--frames", "6", "--train-per-class", "4", "--test-per-class", "2", "--workers", "1"]
    assert main(["prepare", "motion", "--root", str(workspace / "motion"), *arguments]) == 0
    (workspace / "tiny.yaml").write_text(
        f"""
        output: {workspace / "run"}
        device: cpu
        data: {{name: motion, root: {workspace / "motion"}, workers: 0, cache: true}}
        model:
          backbone_options: {{width: 4, depth: [1, 1, 1]}}
          num_frames: 4
          latent_dim: 16
          num_heads: 2
          feedforward_dim: 16
          enhancement_layers: 1
          activation_layers: 1
        optim: {{epochs: 1, batch_size: 16}}
        """
    )
    assert main(["train", str(workspace / "tiny.yaml")]) == 0
    return workspace


@pytest.mark.slow
class TestCommands:
    """Commands on the motion dataset."""

    def test_train_writes_all_files(self, workspace):
        assert {path.name for path in (workspace / "run").iterdir()} == {
            "config.yaml", "classes.txt", "data.json", "metrics.jsonl", "tensorboard", "checkpoints", "evaluation.json",
            "predictions.npz", "report.html",
        }  # fmt: skip
        content = json.loads((workspace / "run" / "evaluation.json").read_text())
        assert content["clips"] == 2 * len(content["per_class"])
        assert content["localization"]["overall"]["frames"] > 0
        page = (workspace / "run" / "report.html").read_text()
        assert "ART on motion" in page
        assert "Do tracklets follow the limb?" in page

    def test_train_refuses_to_overwrite_and_resumes(self, capsys, workspace):
        code, _, err = run(capsys, "train", workspace / "tiny.yaml")
        assert (code, "already contains a run" in err) == (2, True)
        code, out, _ = run(capsys, "train", workspace / "tiny.yaml", "--resume", "optim.epochs=2", "report=false")
        assert code == 0
        assert "all clips, top-1" in out
        lines = (workspace / "run" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines if '"epoch"' in line and '"event": "epoch"' in line] == [
            1,
            2,
        ]

    def test_evaluate(self, capsys, workspace):
        code, out, _ = run(capsys, "evaluate", "--checkpoint", workspace / "run", "--report", workspace / "again")
        assert code == 0
        assert "walk" in out
        expected, again = (json.loads((workspace / name / "evaluation.json").read_text()) for name in ("run", "again"))
        assert again["confusion"] == expected["confusion"]
        assert (workspace / "again" / "report.html").is_file()
        assert run(capsys, "evaluate", "--checkpoint", workspace / "run", "--split", "train", "data.workers=0")[0] == 0

    def test_score_prints_the_table_of_evaluate(self, capsys, workspace):
        evaluated = run(capsys, "evaluate", "--checkpoint", workspace / "run", "--report", workspace / "once")[1]
        predictions = workspace / "once" / "predictions.npz"
        code, out, _ = run(capsys, "score", predictions, "--report", workspace / "scored")
        assert code == 0
        table = out.splitlines()[:-1]
        assert evaluated.splitlines()[: len(table)] == table, "without the lines on regions, which need the model"
        assert {path.name for path in (workspace / "scored").iterdir()} == {
            "evaluation.json", "predictions.npz", "report.html",
        }  # fmt: skip
        code, out, _ = run(capsys, "score", predictions, workspace / "scored" / "predictions.npz")
        assert (code, out.splitlines()) == (0, table)

    def test_evaluate_and_predict_with_several_views(self, capsys, workspace):
        overrides = ["data.test_views=2", "data.test_crops=3"]
        arguments = ["--checkpoint", workspace / "run", "--report", workspace / "views", *overrides]
        code, _, _ = run(capsys, "evaluate", *arguments)
        assert code == 0
        content = json.loads((workspace / "views" / "evaluation.json").read_text())
        assert content["views"] == {"sampling": "sparse", "views": 2, "crops": 3}
        page = (workspace / "views" / "report.html").read_text()
        assert "<dt>views</dt><dd>2</dd>" in page and "<dt>crops</dt><dd>3</dd>" in page
        clip = sorted((workspace / "motion" / "clips" / "test").iterdir())[0]
        arguments = ["predict", clip, "--checkpoint", workspace / "run", "--device", "cpu", "--json"]
        once, often = (json.loads(run(capsys, *arguments, *more)[1]) for more in ([], ["--views", "3"]))
        assert once != often

    def test_evaluate_on_different_classes(self, capsys, workspace, tmp_path):
        (tmp_path / "classes.txt").write_text("walk\nfly\n")
        (tmp_path / "test.csv").write_text("path,label\na.mp4,0\n")
        code, _, err = run(
            capsys, "evaluate", "--checkpoint", workspace / "run", "data.name=csv", f"data.root={tmp_path}"
        )
        assert code == 2
        assert "unknown to the checkpoint: 'fly'" in err

    def test_predict_skips_unreadable_clips(self, capsys, workspace, tmp_path):
        (tmp_path / "broken.mp4").write_bytes(b"no video")
        good = sorted((workspace / "motion" / "clips" / "test").iterdir())[:2]
        clips = [good[0], tmp_path / "broken.mp4", tmp_path / "missing.mp4", good[1]]
        code, out, err = run(
            capsys, "predict", *clips, "--checkpoint", workspace / "run", "--top-k", "3", "--device", "cpu"
        )
        assert code == 1
        assert out.count("%") == 6
        assert "broken.mp4" in err
        assert "missing.mp4" in err
        assert "Traceback" not in err

    def test_predict_as_json(self, capsys, workspace):
        clip = next((workspace / "motion" / "clips" / "test").iterdir())
        code, out, _ = run(
            capsys, "predict", clip, "--checkpoint", workspace / "run" / "checkpoints" / "best", "--json"
        )
        assert code == 0
        (prediction,) = json.loads(out)
        assert prediction["clip"] == str(clip)
        probabilities = [entry["probability"] for entry in prediction["predictions"]]
        assert len(probabilities) == 5
        assert probabilities == sorted(probabilities, reverse=True)

    def test_compare(self, capsys, workspace):
        arguments = ["--seeds", "1", "--epochs", "1", f"output={workspace / 'both'}"]
        code, out, _ = run(capsys, "compare", workspace / "tiny.yaml", *arguments)
        assert code == 0
        assert "| ART on it |" in out
        assert json.loads((workspace / "both" / "compare.json").read_text())["seeds"] == [0]

    def test_ablate_dry_run(self, capsys, workspace):
        arguments = [workspace / "tiny.yaml", f"output={workspace / 'ablation'}", "--seeds", "1", "--only", "bank"]
        code, out, _ = run(capsys, "ablate", *arguments, "--dry-run")
        assert code == 0
        assert "4 configurations, 1 seeds: 4 runs, 4 left" in out
        assert not (workspace / "ablation").exists()

    def test_compare_over_a_key(self, capsys, workspace):
        arguments = ["--seeds", "1", "--over", "model.linking=index,optimal", f"output={workspace / 'linking'}"]
        code, out, _ = run(capsys, "compare", workspace / "tiny.yaml", *arguments)
        assert code == 0
        assert "| model.linking=optimal |" in out
        content = json.loads((workspace / "linking" / "compare.json").read_text())
        assert content["summary"]["index"]["relinked"]["mean"] == 0
        assert {"limb_single", "limb_best", "limb_any"} <= content["paired"].keys()
