"""Run directories that are in use, have damaged files, or belong to other data; and training that diverges."""

import errno
import fcntl
import json
import logging
import multiprocessing
import random
import shutil
import socket
import time

import pytest
import torch

from art.cli import main
from art.data.datasets.base import Clip, ClipSet
from art.model.files import NonFiniteError
from art.model.loading import load_model
from art.train import lock as lock_module
from art.train.checkpoint import CheckpointError, RunDir, load_training_state
from art.train.checkpoint_io import verify_checkpoint
from art.train.config import ConfigError
from art.train.data_record import DataChanged, check_unchanged, format_record, read_record, record_data
from art.train.lock import DirectoryInUse, DirectoryLock
from art.train.loop import NonFiniteLoss, train

# The lock


def hold(directory, ready, end):
    with DirectoryLock(directory) as lock:
        lock.acquire()
        ready.set()
        end.wait()


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock."""
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, end))
    process.start()
    assert ready.wait(30)
    yield process, end
    process.kill()
    process.join()


def test_lock_excludes_other_processes_until_the_holder_ends(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock_module, "_ACQUIRE_TIMEOUT", 0.2)
    process, _ = holder
    message = rf"{tmp_path} is in use: .*process {process.pid} on {socket.gethostname()}"
    with pytest.raises(DirectoryInUse, match=message):
        DirectoryLock(tmp_path).acquire()
    process.kill()
    process.join()
    assert (tmp_path / ".lock").exists()  # stale
    with DirectoryLock(tmp_path) as lock:
        lock.acquire()
        lock.acquire()  # has no effect
        with pytest.raises(DirectoryInUse, match="in use"):
            DirectoryLock(tmp_path).acquire()
    assert list(tmp_path.iterdir()) == []


def test_lock_waits_for_a_holder_that_is_ending(tmp_path, holder):
    _, end = holder
    end.set()
    with DirectoryLock(tmp_path) as lock:
        lock.acquire()


@pytest.mark.parametrize("alive", [True, False])
def test_lock_of_another_machine_is_observed(tmp_path, monkeypatch, alive):
    monkeypatch.setattr(lock_module, "_HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock_module, "_OBSERVE", 0.2)
    holder = {"host": "elsewhere", "pid": 7, "boot": "other", "beat": 1}
    (tmp_path / ".lock").write_text(json.dumps(holder))
    lock, count = DirectoryLock(tmp_path), 0

    def sleep(_):
        nonlocal count
        count += 1
        if alive and count == 3:
            (tmp_path / ".lock").write_text(json.dumps(holder | {"beat": 2}))

    monkeypatch.setattr(time, "sleep", sleep)
    if alive:
        with pytest.raises(DirectoryInUse, match="process 7 on elsewhere"):
            lock.acquire()
    else:
        lock.acquire()
        assert json.loads((tmp_path / ".lock").read_text())["host"] == socket.gethostname()
    lock.release()


def test_file_systems_without_locks_rely_on_updates_of_the_file(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    monkeypatch.setattr(lock_module, "_HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock_module, "_OBSERVE", 2.0)
    with DirectoryLock(tmp_path) as lock:
        lock.acquire()
        monkeypatch.setattr(lock_module, "_held", set())  # as in another process
        with pytest.raises(DirectoryInUse):
            DirectoryLock(tmp_path).acquire()
    monkeypatch.setattr(lock_module, "_OBSERVE", 0.1)
    (tmp_path / ".lock").write_text(json.dumps({"host": "here", "pid": 7, "boot": lock_module._boot_id(), "beat": 1}))
    with DirectoryLock(tmp_path) as lock:
        lock.acquire()


# The data record


def clip_set(root, rows, split="train", classes=("a", "b")):
    return ClipSet("mine", split, root, tuple(Clip(root / name, label) for name, label in rows), classes)


def test_changes_of_data_are_described(tmp_path):
    rows = [("x.mp4", 0), ("y.mp4", 1), ("z.mp4", 1)]
    for name, _ in rows:
        (tmp_path / name).write_bytes(name.encode() * 30_000)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "1.jpg").write_bytes(b"1")
    rows.append(("frames", 0))
    record = record_data([clip_set(tmp_path, rows)])
    (tmp_path / "data.json").write_text(format_record(record))
    saved = read_record(tmp_path / "data.json")
    assert saved == record
    copied = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-copy"), copy_function=shutil.copyfile)
    check_unchanged(saved, record_data([clip_set(copied, rows)]), "run")  # modification times do not matter

    def difference(new_rows, classes=("a", "b")):
        with pytest.raises(DataChanged) as error:
            check_unchanged(saved, record_data([clip_set(copied, new_rows, classes=classes)]), "run")
        return str(error.value)

    assert "train split: 1 with another label (y.mp4: 1, now 0). Restore" in difference(
        [rows[0], ("y.mp4", 0), *rows[2:]]
    )
    assert "4 clips then, 3 now, 1 removed (x.mp4)" in difference(rows[1:])
    assert "4 clips then, 5 now, 1 added (new.mp4)" in difference([*rows, ("new.mp4", 0)])
    assert "the same clips in another order" in difference(rows[::-1])
    assert "2 classes then, 3 now" in difference(rows, classes=("a", "b", "c"))
    content = bytearray((copied / "z.mp4").read_bytes())
    content[len(content) // 2] ^= 1  # of the same size
    (copied / "z.mp4").write_bytes(content)
    (copied / "frames" / "2.jpg").write_bytes(b"2")
    assert "2 with another file (z.mp4, frames)" in difference(rows)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 2}', '{"format": 1, "splits": {"train": {"clips": [[1]]}}}'])
def test_damaged_record_is_named(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ValueError, match=r"data\.json: "):
        read_record(tmp_path / "data.json")


# Runs


@pytest.fixture(scope="module")
def two_epochs(configured, tmp_path_factory):
    """A run of two epochs with two checkpoints, of steps 2 and 4."""
    directory = tmp_path_factory.mktemp("run") / "run"
    train(configured(directory, "optim.epochs=2", "checkpoints.keep=2"))
    return directory


@pytest.fixture
def run(two_epochs, tmp_path):
    return RunDir(shutil.copytree(two_epochs, tmp_path / "run"))


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


FILES = (
    "config.json", "model.safetensors", "training_state.pt", "training_state/.metadata", "training_state/__0_0.distcp",
    "SHA256SUMS",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_found_and_an_older_checkpoint_is_used(run, name):
    assert run.find_checkpoint() == (run.last, {})
    flip_bit(run.last / name)
    checkpoint, damaged = run.find_checkpoint()
    assert checkpoint is not None and checkpoint.name == "step-00000002"
    assert list(damaged) == [run.last] and name.rpartition("/")[2] in str(damaged[run.last])
    (checkpoint / name).unlink()
    before = contents(run.path)
    if name == "SHA256SUMS":  # a checkpoint of an earlier version
        assert run.find_checkpoint()[0] == checkpoint
    else:
        with pytest.raises(CheckpointError, match=r"damaged.*no older checkpoint"):
            run.find_checkpoint()
    assert contents(run.path) == before


@pytest.mark.slow
def test_run_resumes_from_an_older_checkpoint(run, configured, recorded, unbroken, assert_same_run, caplog):
    newest = shutil.copytree(run.last, run.last.with_name("step-00000003"))
    for directory in (run.last, newest):
        flip_bit(directory / "training_state" / "__0_0.distcp")
    damaged = contents(run.last)
    with caplog.at_level(logging.WARNING, "art"):
        train(configured(run.path, "checkpoints.keep=2"), resume="auto")
    assert "does not match its checksum" in caplog.text and "step-00000002" in caplog.text
    assert_same_run(run.path, unbroken / "backbone")
    names = {path.name for path in run.last.parent.iterdir()}
    assert names == {"last", "best", "step-00000004", "damaged-last", "damaged-step-00000003"}
    assert contents(run.last.with_name("damaged-last")) == damaged
    assert verify_checkpoint(run.last)["position"]["step"] == 6


@pytest.mark.slow
def test_only_checkpoint_is_never_overwritten(run, configured):
    shutil.rmtree(run.last.with_name("step-00000002"))
    (run.last / "training_state.pt").unlink()
    before = contents(run.path)
    for resume in (True, "auto"):
        with pytest.raises(CheckpointError, match=r"training_state\.pt"):
            train(configured(run.path), resume=resume)
    (run.last / "SHA256SUMS").unlink()  # of an earlier version
    with pytest.raises(CheckpointError, match=r"no training_state\.pt"):
        train(configured(run.path), resume=True)
    assert contents(run.path) == {k: v for k, v in before.items() if k.name != "SHA256SUMS" or k.parts[1] != "last"}


@pytest.mark.parametrize("text", ["", "seed: 0\n", "[1]", "{"])
def test_damaged_configuration_of_a_run_is_named(configured, tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"{tmp_path}/config\.yaml: (is empty|has no data|holds a list|cannot be)"):
        RunDir(tmp_path).check(configured(tmp_path), resume=True, overwrite=False)


@pytest.mark.slow
def test_seeded_mutations_are_found(run, configured):
    """Each mutation of a file is found, or does not change what is loaded."""
    expected = load_model(run.last).state_dict()
    rng = random.Random(3)
    for number in range(60):
        path = run.last / FILES[number % len(FILES)]
        original = path.read_bytes()
        start = rng.randrange(len(original))
        content = bytearray(original)
        if number % 4 == 0:
            content[start] ^= 1 << rng.randrange(8)
        elif number % 4 == 1:
            del content[start:]
        elif number % 4 == 2:
            content[start : start + 8] = rng.randbytes(8)
        else:
            content[start:start] = rng.randbytes(3)
        path.write_bytes(content)
        try:
            verify_checkpoint(run.last)
        except CheckpointError as error:
            assert "\n" not in str(error) and path.name in str(error)
        else:
            assert content == original or path.name == "SHA256SUMS"
        if number % len(FILES) < 2:
            try:
                loaded = load_model(run.last).state_dict()
            except ValueError as error:
                assert "\n" not in str(error) and path.name in str(error)
            else:
                assert all(torch.equal(loaded[name], expected[name]) for name in expected)
        path.write_bytes(original)


def test_removed_checkpoints_are_not_the_start_of_a_run(tmp_path, caplog):
    run = RunDir(tmp_path)
    assert run.find_checkpoint() == (None, {}) and not caplog.text
    run.metrics.write_text('{"event": "step", "epoch": 1, "step": 1}\n')  # stopped in the first epoch
    assert run.find_checkpoint() == (None, {}) and "starting from step 1" in caplog.text
    run.metrics.write_text('{"event": "epoch", "epoch": 1, "step": 2}\n')
    with pytest.raises(CheckpointError, match=r"last: there is no checkpoint .*restore .*, or .*--overwrite"):
        run.find_checkpoint()
    run.metrics.unlink()
    run.best.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"last: there is no checkpoint"):
        run.find_checkpoint()


@pytest.mark.slow
def test_changed_data_is_refused_or_accepted(run, clips, configured, tmp_path, caplog):
    data = shutil.copytree(clips, tmp_path / "data")
    root = f"data.root={data}"
    train(configured(run.path, "optim.epochs=3", root), resume=True)
    table = (data / "train.csv").read_text()
    (data / "train.csv").write_text(table.replace("train_0_0.mp4,0\n", ""))
    before = contents(run.path)
    with pytest.raises(DataChanged, match=r"train split: 9 clips then, 8 now, 1 removed \(train_0_0\.mp4\)"):
        train(configured(run.path, "optim.epochs=4", root), resume=True)
    assert contents(run.path) == before
    train(configured(run.path, "optim.epochs=4", root), resume=True, allow_changed_data=True)
    assert "1 removed (train_0_0.mp4). Continuing with the data as it is now" in caplog.text
    caplog.clear()
    train(configured(run.path, "optim.epochs=5", root), resume=True)  # the change has been accepted
    assert "the data has changed" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_update_that_is_not_finite_is_not_saved(configured, run, precision, tmp_path):
    """The loss of the only step is finite, the weights after it are not."""
    config = configured(tmp_path / "new", "optim.batch_size=9", "optim.lr=1e30", f"precision={precision}")
    with pytest.raises(
        NonFiniteLoss, match=r"weights.*not finite after step 1 .*learning rate 1e\+30.*loss/total \d.*nothing"
    ):
        train(config)
    assert not RunDir(config.output).last.exists()


@pytest.mark.slow
def test_weights_that_become_non_finite_keep_the_last_checkpoint(configured, in_step, tmp_path):
    def poison(trainer):
        original = trainer.state.after_optimizer_step

        def after_optimizer_step():
            original()
            trainer.state.model.video_head.weight.data[0, 0] = float("inf")

        trainer.state.after_optimizer_step = after_optimizer_step

    in_step(4, poison)
    with pytest.raises(
        NonFiniteLoss, match=r"model\.video_head\.weight.*after step 4 \(epoch 2\).*has the last valid state"
    ):
        train(configured(tmp_path / "run"))
    last = RunDir(tmp_path / "run").last
    assert load_training_state(last)["position"]["step"] == 2
    load_model(last)
    model = load_model(last)
    model.video_head.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(NonFiniteError, match=r"model\.safetensors: .*not finite \(video_head\.weight\)"):
        load_model(tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), 3e38], ids=["weights", "outputs"])
def test_commands_exit_with_1_if_a_model_is_not_finite(unbroken, clips, tmp_path, capsys, value):
    """3e38 is finite, but the logits overflow."""
    run = shutil.copytree(unbroken / "backbone", tmp_path / "run")
    last = run / "checkpoints" / "last"
    model = load_model(last)
    model.video_head.weight.data.fill_(value)
    model.save_pretrained(last)
    clip, checkpoint = str(clips / "test_0_0.mp4"), ["--checkpoint", str(run)]
    for command in (["predict", clip], ["evaluate"], ["explain", clip, "--out", str(tmp_path / "out")]):
        assert main([*command, *checkpoint]) == 1, command
        assert "not finite" in capsys.readouterr().err
    assert not (run / "out").exists()


def test_changed_data_is_accepted_by_a_flag(configured, tmp_path, monkeypatch):
    calls = []

    def train(config, **options):
        calls.append(options["allow_changed_data"])
        raise ValueError("enough")

    monkeypatch.setattr("art.train.loop.train", train)
    config = tmp_path / "config.yaml"
    config.write_text("")
    for flags in ([], ["--allow-changed-data"]):
        main(["train", str(config), "--resume", *flags])
    assert calls == [False, True]
