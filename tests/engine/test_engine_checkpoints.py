from pathlib import Path

import pytest
import torch

from art.engine import checkpoints
from art.engine.checkpoints import CheckpointError, copy_checkpoint, load_training_state, save_checkpoint


class Model:
    def __init__(self, text: str) -> None:
        self.text = text

    def save_pretrained(self, folder: Path) -> None:
        (folder / "config.json").write_text(self.text)


class Crash(Exception):
    pass


def content(folder: Path) -> tuple[str, int]:
    state = load_training_state(folder)
    return (folder / "config.json").read_text(), state["step"]


def test_saved_and_read_back(tmp_path):
    folder = tmp_path / "checkpoints" / "last"
    save_checkpoint(folder, Model("one"), {"step": 1, "tensor": torch.arange(3)})
    save_checkpoint(folder, Model("two"), {"step": 2, "tensor": torch.arange(3)})
    assert content(folder) == ("two", 2)
    assert torch.equal(load_training_state(folder)["tensor"], torch.arange(3))
    assert [path.name for path in folder.parent.iterdir()] == ["last"]


def test_a_crash_while_writing_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "last"
    save_checkpoint(folder, Model("one"), {"step": 1})

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.torch, "save", crash)
        with pytest.raises(Crash):
            save_checkpoint(folder, Model("two"), {"step": 2})
    assert content(folder) == ("one", 1)
    save_checkpoint(folder, Model("three"), {"step": 3})
    assert content(folder) == ("three", 3)
    assert [path.name for path in folder.parent.iterdir()] == ["last"]


@pytest.mark.parametrize("renames_before", [0, 1, 2])
def test_a_crash_around_either_rename_leaves_a_whole_checkpoint(tmp_path, monkeypatch, renames_before):
    folder = tmp_path / "last"
    save_checkpoint(folder, Model("one"), {"step": 1})
    rename, done = Path.rename, []

    def crash_after(self: Path, target: Path) -> Path:
        if len(done) == renames_before:
            raise Crash
        done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash_after)
        if renames_before == 2:  # both renames done: the crash comes in the clearing up
            patched.setattr(checkpoints, "_flush", lambda path: _crash_at(path, tmp_path))
        with pytest.raises(Crash):
            save_checkpoint(folder, Model("two"), {"step": 2})
    assert content(folder) == (("two", 2) if renames_before == 2 else ("one", 1))
    save_checkpoint(folder, Model("three"), {"step": 3})
    assert content(folder) == ("three", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def _crash_at(path: Path, folder: Path) -> None:
    if path == folder:
        raise Crash


def test_a_copy_replaces_as_a_whole(tmp_path):
    last, best = tmp_path / "last", tmp_path / "best"
    save_checkpoint(last, Model("one"), {"step": 1})
    copy_checkpoint(last, best)
    save_checkpoint(last, Model("two"), {"step": 2})
    assert content(best) == ("one", 1)
    copy_checkpoint(last, best)
    assert content(best) == ("two", 2)


def test_no_state_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"last: no training_state\.pt"):
        load_training_state(tmp_path / "last")


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "training_state.pt").write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match=r"training_state\.pt: cannot be read"):
        load_training_state(tmp_path)


def test_a_state_that_would_run_code_is_refused(tmp_path):
    torch.save({"step": Model("code")}, tmp_path / "training_state.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_training_state(tmp_path)


def test_a_state_of_another_form_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "training_state.pt")
    with pytest.raises(CheckpointError, match="holds a list, expected a dict"):
        load_training_state(tmp_path)
