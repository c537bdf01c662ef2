"""Crash-safe checkpoints and run directories."""

import io
import json
import pickle
from pathlib import Path

import pytest
import torch

from art.train import checkpoint as checkpoint_module
from art.train.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    RunDir,
    copy_checkpoint,
    differing_keys,
    load_tensors,
    load_training_state,
    read_history,
    saved_tensors,
)
from art.train.config import load_config, to_dict


class Crash(Exception):
    pass


def save(directory: Path, text: str, step: int, **options: object) -> None:
    with CheckpointWriter(directory, **options) as writer:
        writer.save(lambda to: (to / "config.json").write_text(text), {"step": step}, {"w": torch.full((3,), step)})
        writer.wait()


def load(directory: Path) -> tuple[str, int]:
    """Returns the text and the step, which must be the same in the values and the tensors."""
    step = load_training_state(directory)["step"]
    tensor = torch.zeros(3, dtype=torch.int64)
    load_tensors(directory, {"w": tensor})
    assert tensor.tolist() == [step] * 3
    return (directory / "config.json").read_text(), step


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def raise_crash(_: Path) -> None:
    raise Crash


def test_save_and_load(tmp_path):
    directory = tmp_path / "checkpoints" / "last"
    save(directory, "one", 1)
    save(directory, "two", 2)
    assert load(directory) == ("two", 2)
    assert saved_tensors(directory) == {"w": torch.Size([3])}
    assert names(directory.parent) == {"last"}


def test_asynchronous_save_copies_the_tensors(tmp_path):
    tensors = {"w": torch.ones(100_000), "last": torch.ones(2, 3, 4, 5).contiguous()}
    with CheckpointWriter(tmp_path / "last", asynchronous=True) as writer:
        writer.save(lambda to: None, {"step": 1}, tensors)
        for tensor in tensors.values():
            tensor.zero_()
        writer.wait()
    for name, tensor in tensors.items():
        load_tensors(tmp_path / "last", {name: tensor})
        assert tensor.min() == 1


def test_asynchronous_errors_are_raised_by_the_next_wait(tmp_path):
    def fail(_: Path) -> None:
        raise OSError("no space left")

    save(tmp_path / "last", "one", 1)
    with CheckpointWriter(tmp_path / "last", asynchronous=True) as writer:
        writer.save(fail, {"step": 2}, {"w": torch.full((3,), 2)})
        with pytest.raises(OSError, match="no space left"):
            writer.save(lambda to: None, {"step": 3}, {})
    assert load(tmp_path / "last") == ("one", 1)


def test_write_errors_name_the_directory(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    save(tmp_path / "last", "one", 1)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module.dcp.FileSystemWriter, "write_data", fail)
        with pytest.raises(OSError, match=r"last: the checkpoint could not be written \(rank 0: no space left\)"):
            save(tmp_path / "last", "two", 2)
    assert load(tmp_path / "last") == ("one", 1)


def test_keep_earlier_checkpoints_by_step(tmp_path):
    for step in range(1, 6):
        save(tmp_path / "last", f"{step}", step, keep=3)
        copy_checkpoint(tmp_path / "last", tmp_path / "best")  # does not remove numbered checkpoints
    found = {path.name: load(path) for path in tmp_path.iterdir()}
    assert found == {"last": ("5", 5), "best": ("5", 5), "step-00000004": ("4", 4), "step-00000003": ("3", 3)}
    save(tmp_path / "last", "6", 6)
    assert names(tmp_path) == {"last", "best"}


@pytest.mark.parametrize("keep", [1, 3])
def test_crash_while_writing_keeps_the_previous_checkpoint(tmp_path, keep):
    directory = tmp_path / "last"
    save(directory, "one", 1, keep=keep)
    with CheckpointWriter(directory, keep=keep) as writer, pytest.raises(Crash):
        writer.save(raise_crash, {"step": 2}, {"w": torch.full((3,), 2)})
    assert load(directory) == ("one", 1)
    save(directory, "three", 3, keep=keep)
    assert load(directory) == ("three", 3)
    assert names(tmp_path) == ({"last"} if keep == 1 else {"last", "step-00000001"})


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("renames_before", [0, 1, 2, 3, 4])
def test_crash_at_any_rename_leaves_complete_checkpoints(tmp_path, monkeypatch, renames_before, keep):
    directory = tmp_path / "last"
    for step in (1, 2):
        save(directory, str(step), step, keep=keep)
    rename, done = Path.rename, []

    def rename_or_crash(self: Path, target: Path) -> Path:
        if target.parent == tmp_path:  # PyTorch renames files in the directory
            if len(done) == renames_before:
                raise Crash
            done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_or_crash)
        crashed = False
        try:
            save(directory, "3", 3, keep=keep)
        except Crash:
            crashed = True
    assert crashed == (renames_before < (2 if keep == 1 else 4))
    checkpoint_module.recover(directory)
    assert load(directory) == (("3", 3) if renames_before >= 2 else ("2", 2))
    for kept in tmp_path.glob("step-*"):
        load(kept)
    save(directory, "4", 4, keep=keep)
    assert load(directory) == ("4", 4)
    previous = (["3"] if renames_before >= 2 else ["2"]) if keep == 2 else []
    assert [load(kept)[0] for kept in tmp_path.glob("step-*")] == previous
    assert len(names(tmp_path)) == keep


def test_interrupted_removal_is_completed(tmp_path):
    save(tmp_path / "last", "one", 1)
    (tmp_path / ".last.previous").mkdir()
    save(tmp_path / "last", "two", 2, keep=2)
    assert names(tmp_path) == {"last", "step-00000001"}


def test_copy_checkpoint(tmp_path):
    last, best = tmp_path / "last", tmp_path / "best"
    save(last, "one", 1)
    copy_checkpoint(last, best)
    save(last, "two", 2)
    assert load(best) == ("one", 1)
    copy_checkpoint(last, best)
    assert load(best) == ("two", 2)


def test_invalid_training_states(tmp_path):
    with pytest.raises(CheckpointError, match=r"last: no training_state\.pt"):
        load_training_state(tmp_path / "last")
    path = tmp_path / "training_state.pt"
    path.write_bytes(b"not an archive")
    with pytest.raises(CheckpointError, match=r"training_state\.pt: cannot be read"):
        load_training_state(tmp_path)
    torch.save({"step": Crash()}, path)  # loading it would execute code
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_training_state(tmp_path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="contains a list, expected a dict"):
        load_training_state(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize("pickled", [Evil(), {"a": io.BytesIO}, [1, 2]])
def test_metadata_cannot_execute_code(tmp_path, pickled):
    save(tmp_path / "last", "one", 1)
    (tmp_path / "last" / "training_state" / ".metadata").write_bytes(pickle.dumps(pickled))
    with pytest.raises(CheckpointError, match=r"\.metadata: (cannot be read|contains a list)"):
        saved_tensors(tmp_path / "last")
    with pytest.raises(CheckpointError, match="training_state: cannot be read"):
        load_tensors(tmp_path / "last", {"w": torch.zeros(3)})


@pytest.mark.parametrize("tensors", [{"v": torch.zeros(3)}, {"w": torch.zeros(4)}])
def test_missing_tensors_and_different_shapes(tmp_path, tensors):
    save(tmp_path / "last", "one", 1)
    with pytest.raises(CheckpointError, match="training_state: cannot be read"):
        load_tensors(tmp_path / "last", tensors)


def test_history_ignores_a_truncated_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_history(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_history(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is not valid JSON"):
        read_history(path)


def test_differing_keys_ignores_keys_that_do_not_change_results():
    one = load_config(None, ["model.backbone_options.width=4"])
    other = load_config(None, ["model.backbone_options.width=8", "device=cpu", "output=elsewhere", "data.workers=7"])
    assert differing_keys(to_dict(one), to_dict(other)) == {"model.backbone_options.width": (4, 8)}
    assert differing_keys(json.loads(json.dumps(to_dict(one))), to_dict(one)) == {}


def test_run_dir_must_not_be_a_file(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a directory"):
        RunDir(tmp_path / "run").check(load_config(None), resume=False, overwrite=False)
