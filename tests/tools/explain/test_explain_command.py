import json

import pytest

from art.cli import main

FILES = ["explanation.json", "film.gif", "film.mp4", "sheet.png"]


@pytest.fixture
def checkpoint(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_one_command_from_a_checkpoint_to_pictures(checkpoint, clip, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert run("explain", clip, "--checkpoint", checkpoint, "--out", out, "--moments", 3, "--top-k", 2) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    said = capsys.readouterr().out
    assert said.count(" %  ") == 2 and "no rollout of this backbone: it has no attention" in said
    assert json.loads((out / "explanation.json").read_text())["clip"] == str(clip)


def test_what_is_wrong_is_said_before_anything_is_written(checkpoint, clip, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:200])
    out = tmp_path / "out"
    for arguments, told in (
        ((clip, "--out", tmp_path / "file"), "is no folder"),
        ((tmp_path / "broken.mp4", "--out", out), "broken.mp4: cannot be read"),
        ((clip, "--out", out, "--top-k", 0), "top_k: got 0"),
        ((clip, "--out", out, "--moments", -1), "moments: got -1"),
    ):
        assert run("explain", *arguments, "--checkpoint", checkpoint) == 2
        assert told in capsys.readouterr().err
    assert run("explain", clip, "--checkpoint", tmp_path, "--out", out) == 2
    assert "no config.json" in capsys.readouterr().err
    assert not out.exists()


def test_a_backbone_alone_is_drawn_by_its_own_maps(make_model, clip, tmp_path):
    make_model("backbone").save_pretrained(tmp_path / "model")
    assert run("explain", clip, "--checkpoint", tmp_path / "model", "--out", tmp_path / "out", "--moments", 0) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
