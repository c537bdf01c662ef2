import io
import pickle
from pathlib import Path

import pytest
import torch

from art.train import checkpoint as checkpoints
from art.train.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    copy_checkpoint,
    load_tensors,
    load_training_state,
    saved_tensors,
)


class Crash(Exception):
    pass


def save(folder: Path, text: str, step: int, **options: object) -> None:
    with CheckpointWriter(folder, **options) as writer:
        writer.save(lambda into: (into / "config.json").write_text(text), {"step": step}, {"w": torch.full((3,), step)})
        writer.wait()


def content(folder: Path) -> tuple[str, int]:
    """The text and the step, which is the same in the values and the tensors."""
    step = load_training_state(folder)["step"]
    tensor = torch.zeros(3, dtype=torch.int64)
    load_tensors(folder, {"w": tensor})
    assert tensor.tolist() == [step] * 3
    return (folder / "config.json").read_text(), step


def test_saved_and_read_back(tmp_path):
    folder = tmp_path / "checkpoints" / "last"
    save(folder, "one", 1)
    save(folder, "two", 2)
    assert content(folder) == ("two", 2)
    assert saved_tensors(folder) == {"w": torch.Size([3])}
    assert [path.name for path in folder.parent.iterdir()] == ["last"]


def test_what_is_saved_in_the_background_is_what_was_there_when_it_was_asked_for(tmp_path):
    values, tensors = {"step": 1}, {"w": torch.ones(100_000), "last": torch.ones(2, 3, 4, 5).contiguous()}
    with CheckpointWriter(tmp_path / "last", asynchronous=True) as writer:
        writer.save(lambda into: None, dict(values), tensors)
        for tensor in tensors.values():
            tensor.zero_()
        writer.wait()
    for name, tensor in tensors.items():
        load_tensors(tmp_path / "last", {name: tensor})
        assert tensor.min() == 1


def test_an_error_in_the_background_is_told_by_the_next_wait(tmp_path):
    def crash(_: Path) -> None:
        raise OSError("no space left")

    save(tmp_path / "last", "one", 1)
    with CheckpointWriter(tmp_path / "last", asynchronous=True) as writer:
        writer.save(crash, {"step": 2}, {"w": torch.full((3,), 2)})
        with pytest.raises(OSError, match="no space left"):
            writer.save(lambda into: None, {"step": 3}, {})
    assert content(tmp_path / "last") == ("one", 1)


def test_tensors_that_cannot_be_written_are_an_error_that_names_the_folder(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    save(tmp_path / "last", "one", 1)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.dcp.FileSystemWriter, "write_data", full)
        with pytest.raises(OSError, match=r"last: the checkpoint could not be written \(rank 0: no space left\)"):
            save(tmp_path / "last", "two", 2)
    assert content(tmp_path / "last") == ("one", 1)


def test_the_last_few_are_kept_with_their_steps(tmp_path):
    folder = tmp_path / "last"
    for step in range(1, 6):
        save(folder, f"{step}", step, keep=3)
    found = {path.name: content(path) for path in tmp_path.iterdir()}
    assert found == {"last": ("5", 5), "step-00000004": ("4", 4), "step-00000003": ("3", 3)}
    save(folder, "6", 6)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("keep", [1, 3])
def test_a_crash_while_writing_leaves_the_former_checkpoint(tmp_path, keep):
    folder = tmp_path / "last"
    save(folder, "one", 1, keep=keep)

    def crash(_: Path) -> None:
        raise Crash

    with CheckpointWriter(folder, keep=keep) as writer, pytest.raises(Crash):
        writer.save(crash, {"step": 2}, {"w": torch.full((3,), 2)})
    assert content(folder) == ("one", 1)
    save(folder, "three", 3, keep=keep)
    assert content(folder) == ("three", 3)
    assert {path.name for path in tmp_path.iterdir()} == ({"last"} if keep == 1 else {"last", "step-00000001"})


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("renames_before", [0, 1, 2, 3, 4])
def test_a_crash_around_any_rename_leaves_whole_checkpoints(tmp_path, monkeypatch, renames_before, keep):
    folder = tmp_path / "last"
    for step in (1, 2):
        save(folder, str(step), step, keep=keep)
    rename, done = Path.rename, []

    def crash_after(self: Path, target: Path) -> Path:
        if target.parent == tmp_path:  # PyTorch renames files within
            if len(done) == renames_before:
                raise Crash
            done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash_after)
        crashed = False
        try:
            save(folder, "3", 3, keep=keep)
        except Crash:
            crashed = True
    assert crashed == (renames_before < (2 if keep == 1 else 4))
    checkpoints.recover(folder)
    assert content(folder) == (("3", 3) if renames_before >= 2 else ("2", 2))
    for kept in tmp_path.glob("step-*"):
        content(kept)
    save(folder, "4", 4, keep=keep)
    assert content(folder) == ("4", 4)
    before = (["3"] if renames_before >= 2 else ["2"]) if keep == 2 else []
    assert [content(kept)[0] for kept in tmp_path.glob("step-*")] == before
    assert len(list(tmp_path.iterdir())) == keep


def test_a_removal_that_a_crash_cut_short_is_finished(tmp_path):
    save(tmp_path / "last", "one", 1)
    (tmp_path / ".last.previous").mkdir()
    save(tmp_path / "last", "two", 2, keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"last", "step-00000001"}


def test_a_copy_replaces_as_a_whole(tmp_path):
    last, best = tmp_path / "last", tmp_path / "best"
    save(last, "one", 1)
    copy_checkpoint(last, best)
    save(last, "two", 2)
    assert content(best) == ("one", 1)
    copy_checkpoint(last, best)
    assert content(best) == ("two", 2)


def test_a_copy_leaves_the_numbered_ones_alone(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path / "last", f"{step}", step, keep=3)
        copy_checkpoint(tmp_path / "last", tmp_path / "best")
    assert {path.name for path in tmp_path.iterdir()} == {"last", "best", "step-00000001", "step-00000002"}


def test_no_state_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"last: no training_state\.pt"):
        load_training_state(tmp_path / "last")


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "training_state.pt").write_bytes(b"no archive")
    with pytest.raises(CheckpointError, match=r"training_state\.pt: cannot be read"):
        load_training_state(tmp_path)


def test_a_state_that_would_run_code_is_refused(tmp_path):
    torch.save({"step": Crash()}, tmp_path / "training_state.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_training_state(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize("pickled", [Evil(), {"a": io.BytesIO}, [1, 2]])
def test_tensors_whose_table_would_run_code_or_is_none_are_refused(tmp_path, pickled):
    save(tmp_path / "last", "one", 1)
    (tmp_path / "last" / "training_state" / ".metadata").write_bytes(pickle.dumps(pickled))
    with pytest.raises(CheckpointError, match=r"\.metadata: (cannot be read|holds a list)"):
        saved_tensors(tmp_path / "last")
    with pytest.raises(CheckpointError, match="training_state: cannot be read"):
        load_tensors(tmp_path / "last", {"w": torch.zeros(3)})


@pytest.mark.parametrize("wanted", [{"v": torch.zeros(3)}, {"w": torch.zeros(4)}])
def test_tensors_that_are_not_there_or_have_another_shape_are_named(tmp_path, wanted):
    save(tmp_path / "last", "one", 1)
    with pytest.raises(CheckpointError, match="training_state: cannot be read"):
        load_tensors(tmp_path / "last", wanted)


def test_a_state_of_another_form_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "training_state.pt")
    with pytest.raises(CheckpointError, match="holds a list, expected a dict"):
        load_training_state(tmp_path)
