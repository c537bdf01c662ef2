import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from art.data.datasets.base import open_dataset
from art.data.decoding.video import frame_times, read_frames
from art.data.parallel import Stopped
from art.data.prepare import convert
from art.data.prepare.check import check_dataset
from art.data.prepare.convert import JOURNAL, prepare_dataset
from art.data.prepare.reencode import EncodeResult, Encoding, WriteError

GYM = "-_LtLS9_rO-"
TURN = f"{GYM}_E_000002_000006_A_0000_0001"
VAULT = "0LtLS9wROrk_E_000001_000004_A_0000_0002"
OWN = "1LtLS9wROrk_E_000001_000004_A_0000_0002"
GONE = "2LtLS9wROrk_E_000001_000004_A_0000_0002"
CUT = {"segments": {"A_0000_0001": {"timestamps": [[0.25, 1.5]]}}, "timestamps": [[2.0, 6.5]]}
STAGES = {"segments": {"A_0000_0002": {"timestamps": [[0.5, 1.0], [1.0, 2.0]]}}, "timestamps": [[1.0, 4.0]]}
TIMES = {GYM: {"E_000002_000006": CUT}, "0LtLS9wROrk": {"E_000001_000004": STAGES}}


def prepare(root, to, name="csv", **options):
    return prepare_dataset(name, root, to, **{"workers": 1, "progress": False, "encoding": Encoding(crf=18), **options})


def state(directory):
    """Content and modification time of every file in a directory."""
    return {
        path.relative_to(directory).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def gym(write_files, numbered):
    """FineGym: a whole video, the video of an event, that of a sub-action, and a sub-action without a file."""
    files = {
        "gym99_categories.txt": "Clabel: 0; set: 1; Glabel: 1; (VT) on\nClabel: 1; set: 1; Glabel: 2; (VT) off\n",
        "set_categories.txt": "set: 1; VT\n",
        "gym99_train_element_v1.1.txt": f"{TURN} 1\n{VAULT} 0\n{GONE} 1\n",
        "gym99_val_element.txt": f"{OWN} 1\n",
        "finegym_annotation_info_v1.1.json": json.dumps(TIMES),
    }
    root = write_files({f"gym/annotations/{name}": text for name, text in files.items()}) / "gym"
    numbered(root / "videos" / f"{GYM}.mp4", 120, gop=250)
    numbered(root / "events" / "0LtLS9wROrk_E_000001_000004.webm", 40, codec="libvpx", first=7)
    numbered(root / "subactions" / f"{OWN}.avi", 30, codec="mpeg4", options={"b": "2M"})
    return root


@pytest.fixture
def table(tmp_path, numbered):
    """A table of six clips, two of which are the halves of one file."""
    root = tmp_path / "table"
    for i, name in enumerate(("a.mp4", "b.webm", "c.avi", "d.mkv", "e.mp4")):
        codec = {"webm": "libvpx", "avi": "mpeg4"}.get(name.split(".")[1], "libx264")
        numbered(root / "clips" / name, 24 + i, codec=codec, options={"b": "2M"} if codec == "mpeg4" else {})
    (root / "train.csv").write_text(
        'label,path,time_start,time_end,note\none,clips/a.mp4,,,"x, y"\ntwo,clips/b.webm,,,\none,./clips/c.avi,,,\n'
        f"two,{root}/clips/d.mkv,,,\none,clips/e.mp4,0,1,\ntwo,clips/e.mp4,1,2,\n"
    )
    (root / "classes.txt").write_text("two\none\n")
    return root


@pytest.fixture
def made(monkeypatch):
    """Collects the names of the files that are encoded."""
    paths, encode = [], convert._encode_job

    def record(job):
        result = encode(job)
        if isinstance(result, EncodeResult):
            paths.append(job.target.name)
        return result

    monkeypatch.setattr(convert, "_encode_job", record)
    return paths


def test_cut_subactions(gym, tmp_path, read_numbers):
    before, to = state(gym), tmp_path / "new"
    result = prepare(gym, to, "finegym99", cut=True)
    assert (result.made, result.kept) == (3, 0)
    train, val = open_dataset("finegym99", to, "train"), open_dataset("finegym99", to, "val")
    assert [clip.path.name for clip in (*train, *val)] == [f"{name}.mp4" for name in (TURN, VAULT, GONE, OWN)]
    assert {(clip.start, clip.end) for clip in (*train, *val)} == {(None, None)}
    turn, vault, gone = (clip.path for clip in train)
    assert read_numbers(read_frames(turn)) == list(range(27, 42))  # 2 s + 0.25 s to 1.5 s, at 12 frames a second
    assert read_numbers(read_frames(vault)) == list(range(6, 24))  # 0.5 s to 2 s of the event, through both stages
    assert read_numbers(read_frames(val.clips[0].path)) == list(range(30))
    assert frame_times(turn) == pytest.approx([i / 12 for i in range(15)])
    assert not gone.exists()
    assert [problem.clip for split in result.check.splits for problem in split.problems] == [f"subactions/{GONE}.mp4"]
    assert state(gym) == before
    annotations = {name: content for name, (content, _) in before.items() if name.startswith("annotations/")}
    assert {name: state(to)[name][0] for name in annotations} == annotations


def test_without_cut_files_keep_their_length_and_path(gym, tmp_path, read_numbers):
    to = tmp_path / "new"
    prepare(gym, to, "finegym99")
    paths = {path.relative_to(to).as_posix() for path in to.rglob("*.mp4")}
    assert paths == {f"videos/{GYM}.mp4", "events/0LtLS9wROrk_E_000001_000004.mp4", f"subactions/{OWN}.mp4"}
    turn, vault, _ = open_dataset("finegym99", to, "train")
    assert read_numbers(read_frames(turn.path, start=turn.start, end=turn.end)) == list(range(27, 42))
    assert read_numbers(read_frames(vault.path, start=vault.start, end=vault.end)) == list(range(6, 24))


def test_cut_after_a_call_without_cut_but_not_the_reverse(gym, tmp_path, made):
    to = tmp_path / "new"
    prepare(gym, to, "finegym99")
    made.clear()
    assert prepare(gym, to, "finegym99", cut=True, splits=["train"]).made == 2
    assert sorted(made) == [f"{TURN}.mp4", f"{VAULT}.mp4"]
    check_rejected(gym, to, "contains sub-actions cut by an earlier call", "finegym99")
    for name in ("gym288_categories.txt", "gym288_train_element_v1.1.txt", "gym288_val_element.txt"):
        text = (gym / "annotations" / name.replace("288", "99")).read_text()
        (gym / "annotations" / name).write_text(text)
    made.clear()
    result = prepare(gym, to, "finegym288", cut=True)
    assert (made, result.kept) == ([], 3), "two datasets have the same files"
    assert len(open_dataset("finegym288", to, "train")) == 3


def test_table_has_the_new_paths(table, tmp_path, read_numbers):
    before, to = state(table), tmp_path / "new"
    result = prepare(table, to)
    assert (result.made, result.check.failed_fraction) == (5, 0)
    old, new = open_dataset("csv", table, "train"), open_dataset("csv", to, "train")
    assert [(c.label, c.start, c.end) for c in new] == [(c.label, c.start, c.end) for c in old]
    assert [clip.path.relative_to(to).as_posix() for clip in new] == [f"clips/{n}.mp4" for n in "abcdee"]
    assert new.class_names == ("two", "one")
    for clip, count in zip(new.clips[:4], (24, 25, 26, 27), strict=True):
        assert read_numbers(read_frames(clip.path)) == list(range(count))
    assert '"x, y"' in (to / "train.csv").read_text()
    assert state(table) == before
    assert check_dataset("csv", to, level="decode", workers=1, progress=False).failed_fraction == 0


def test_list_has_the_new_paths(tmp_path, numbered):
    root = tmp_path / "list"
    for name in ("a b.webm", "c.mp4"):
        numbered(root / name, 12, codec="libvpx" if name.endswith("webm") else "libx264")
    (root / "train.txt").write_text("a b.webm 0\nc.mp4 1\nlost.avi 1\n")
    (root / "val.txt").write_text("c.mp4,0\n")
    prepare(root, tmp_path / "new", "list")
    assert (tmp_path / "new/train.txt").read_text() == "a b.mp4 0\nc.mp4 1\nlost.mp4 1\n"
    assert (tmp_path / "new/val.txt").read_text() == "c.mp4,0\n"
    assert len(open_dataset("list", tmp_path / "new", "val")) == 1


def test_lists_and_tables_in_other_dialects_have_the_new_paths(tmp_path, numbered):
    root = tmp_path / "list"
    for i in range(5):
        numbered(root / f"{i}.mov", 12)
    lines = '0.mov, 0\n1.mov 24 0\n"2.mov" 1\n.\\3.mov;1\n4.mov\t1\n'
    (root / "train.txt").write_text(f"\ufeff{lines}".replace("\n", "\r\n"))
    prepare(root, tmp_path / "new", "list")
    expected = "0.mp4, 0\n1.mp4 24 0\n2.mp4 1\n3.mp4;1\n4.mp4\t1\n"
    assert (tmp_path / "new/train.txt").read_text() == expected
    (root / "train.txt").unlink()
    (root / "Train.csv").write_text("0.mov;a\n1.mov;b\n")
    (root / "val.tsv").write_text("Label\tPath\na\t2.mov\n")
    assert prepare(root, tmp_path / "tables").check.failed_fraction == 0
    assert (tmp_path / "tables/Train.csv").read_text() == "path,label\n0.mp4,a\n1.mp4,b\n"
    assert (tmp_path / "tables/val.tsv").read_text() == "label,path\na,2.mp4\n"


def test_class_directories_keep_the_split_that_was_made(write_files, tmp_path, numbered):
    names = [f"{name}/{person}/1.mov" for name in ("run", "walk") for person in ("anna", "ben", "carl")]
    root = write_files({f"clips/{names[0]}": "no video"}) / "clips"
    for name in names[1:]:
        numbered(root / name, 12)
    result = prepare(root, tmp_path / "new", "folder")
    assert result.made == 5 and "no split directories" in result.check.notes[0]
    for split in ("train", "test"):
        old, new = open_dataset("folder", root, split), open_dataset("folder", tmp_path / "new", split)
        paths = [clip.path.relative_to(root).with_suffix(".mp4") for clip in old]
        assert [clip.path.relative_to(tmp_path / "new") for clip in new] == paths
        assert (new.labels, new.class_names) == (old.labels, old.class_names)


def test_class_directories_keep_unreadable_classes(write_files, tmp_path, numbered):
    root = write_files({"folder/train/a/broken.mp4": "no video"}) / "folder"
    numbered(root / "train/b/x.mov", 12)
    numbered(root / "test/b/y.mp4", 12)
    result = prepare(root, tmp_path / "new", "folder")
    assert result.made == 2
    new = open_dataset("folder", tmp_path / "new", "train")
    assert (new.class_names, new.labels) == (("a", "b"), (1,))
    problems = [(problem.clip, problem.kind) for split in result.check.splits for problem in split.problems]
    assert problems == [("train/a/broken.mp4", "broken")]
    assert prepare(root, tmp_path / "test", "folder", splits=["test"]).made == 1
    assert open_dataset("folder", tmp_path / "test", "test").class_names == ("a", "b")


def test_broken_originals_are_reported_and_skipped(table, tmp_path, made):
    content = (table / "clips/c.avi").read_bytes()
    (table / "clips/c.avi").write_bytes(content[: len(content) // 2])
    (table / "clips/e.mp4").write_text("no video")
    (table / "clips/a.mp4").unlink()
    result = prepare(table, tmp_path / "new")
    assert sorted(made) == ["b.mp4", "d.mp4"]
    (train,) = result.check.splits
    assert [(problem.clip, problem.start, problem.kind) for problem in train.problems] == [
        ("clips/a.mp4", None, "missing"), ("clips/c.avi", None, "broken"),
        ("clips/e.mp4", 0.0, "broken"), ("clips/e.mp4", 1.0, "broken"),
    ]  # fmt: skip
    assert train.failed_fraction == pytest.approx(4 / 6)
    assert {path.name for path in (tmp_path / "new/clips").iterdir()} == {"b.mp4", "d.mp4"}


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda root, to: (to / "clips/b.mp4").unlink(), ["b.mp4"]),
        (lambda root, to: (to / "clips/b.mp4").write_bytes(b"cut off"), ["b.mp4"]),
        (lambda root, to: os.utime(root / "clips/d.mkv", ns=(1, 1)), ["d.mp4"]),
        (lambda root, to: (root / "clips/d.mkv").write_bytes((root / "clips/a.mp4").read_bytes()), ["d.mp4"]),
        (lambda root, to: (to / JOURNAL).write_text((to / JOURNAL).read_text()[:-10]), ["e.mp4"]),
        (lambda root, to: (root / "clips/d.mkv").unlink(), []),
    ],
)
def test_changed_files_are_encoded_again(change, again, table, tmp_path, made):
    to = tmp_path / "new"
    prepare(table, to)
    made.clear()
    change(table, to)
    for _ in range(2):
        result = prepare(table, to)
        assert made == again, "once only"
        assert result.check.failed_fraction == 0
    assert check_dataset("csv", to, workers=1, progress=False).failed_fraction == 0


@pytest.mark.parametrize("other", [Encoding(crf=19), Encoding(18, crf=18), Encoding(keyframe_every=6, crf=18)])
def test_other_settings_encode_everything_again(other, table, tmp_path, made):
    to = tmp_path / "new"
    prepare(table, to)
    made.clear()
    prepare(table, to, encoding=other)
    assert len(made) == 5
    before = {name: content for name, content in state(to).items() if name.endswith(".mp4")}
    result = prepare(table, to, encoding=other)
    assert (len(made), result.made, result.kept) == (5, 0, 5), "finished files are kept"
    assert {name: content for name, content in state(to).items() if name.endswith(".mp4")} == before


def check_rejected(root, to, message, name="csv", **options):
    before, existed = state(root), to.exists()
    with pytest.raises(ValueError, match=message):
        prepare(root, to, name, **options)
    assert (state(root), to.exists()) == (before, existed)


def test_invalid_output_directories(table, tmp_path, write_files):
    (tmp_path / "link").symlink_to(table)
    for inside in (table, table / "new", tmp_path, tmp_path / "link" / "new"):
        check_rejected(table, inside, "contain each other")
    write_files("mine/thesis.txt", "file")
    check_rejected(table, tmp_path / "mine", "contains other files")
    check_rejected(table, tmp_path / "file", "is not a directory")
    to = tmp_path / "new"
    prepare(table, to)
    with (to / JOURNAL).open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        check_rejected(table, to, "another process is writing to")
    (table / "clips/a.mp4").unlink()
    (table / "clips/a.mp4").symlink_to(to / "clips/a.mp4")
    before = (to / "clips/a.mp4").read_bytes()
    check_rejected(table, to, "is a link into --to", encoding=Encoding(crf=40))
    assert (to / "clips/a.mp4").read_bytes() == before


def test_clips_that_cannot_be_prepared(table, gym, tmp_path, numbered):
    check_rejected(table, tmp_path / "new", "--cut cuts the sub-actions of FineGym", cut=True)
    numbered(tmp_path / "elsewhere.mp4", 3)
    numbered(table / "clips/a.avi", 3, codec="mpeg4")
    (table / "clips/frames").mkdir()
    lines = (table / "train.csv").read_text()
    for path, message in (
        (f"{tmp_path}/elsewhere.mp4", "elsewhere.mp4 is not in --root"),
        ("clips/a.avi", "would both become .*a.mp4"),
        ("clips/frames", "is a directory of frames"),
    ):
        (table / "train.csv").write_text(lines + f"one,{path},,,\n")
        check_rejected(table, tmp_path / "new", message)
    (gym / "annotations/set_categories.txt").unlink()
    message = r"train cannot be opened: set_categories\.txt .*; val cannot be opened"
    check_rejected(gym, tmp_path / "new", message, "finegym99")


def test_full_disk_keeps_finished_files(table, tmp_path, numbered, made, limited_file_size):
    numbered(table / "clips/d.mkv", 250)  # larger than the others
    with limited_file_size(6000), pytest.raises(WriteError) as caught:
        prepare(table, tmp_path / "new")
    assert "3 videos were finished and are kept; run the same command to resume" in str(caught.value)
    assert caught.value.filename == str(tmp_path / "new/clips/d.mp4")
    assert {path.name for path in (tmp_path / "new/clips").iterdir()} == {"a.mp4", "b.mp4", "c.mp4"}
    made.clear()
    assert prepare(table, tmp_path / "new").kept == 3
    assert made == ["d.mp4", "e.mp4"]


def test_interruption_leaves_no_partial_file(table, tmp_path, monkeypatch, made):
    reencode = convert.reencode

    def stop():
        raise KeyboardInterrupt

    def interrupt(source, target, encoding, **options):
        return reencode(source, target, encoding, **options | ({"stop": stop} if source.name == "c.avi" else {}))

    with monkeypatch.context() as patch:
        patch.setattr(convert, "reencode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(table, tmp_path / "new")
    assert {path.name for path in (tmp_path / "new/clips").iterdir()} == {"a.mp4", "b.mp4"}
    with monkeypatch.context() as patch:
        patch.setattr(convert, "stop_requested", lambda: True)
        with pytest.raises(Stopped):  # which is not a broken original
            prepare(table, tmp_path / "new")
    made.clear()
    prepare(table, tmp_path / "new")
    assert made == ["c.mp4", "d.mp4", "e.mp4"]


@pytest.fixture(scope="module")
def long_table(tmp_path_factory, numbered):
    """Twenty clips that take a while to encode."""
    root = tmp_path_factory.mktemp("long")
    content = numbered(root / "source.mp4", 240, size=(240, 320)).read_bytes()
    for i in range(20):
        (root / f"{i}.mp4").write_bytes(content)
    (root / "train.csv").write_text("path,label\n" + "".join(f"{i}.mp4,{i % 2}\n" for i in range(20)))
    return root


def children(pid):
    """Child processes of a process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{pid}\n" in status.read_text():
                found.append(int(status.parent.name))
    return found


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGTERM, 143, 1), (signal.SIGKILL, -9, 2)])
def test_resume_after_a_signal(number, code, workers, long_table, tmp_path):
    to = tmp_path / "new"
    command = [sys.executable, "-m", "art", "prepare", "csv", "--root", str(long_table), "--to", str(to)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen([*command, "--workers", str(workers)], **pipes)
    limit = time.monotonic() + 240
    while not list(to.glob("*.mp4")) and time.monotonic() < limit:
        time.sleep(0.01)
    others = children(running.pid)
    running.send_signal(number)
    _, errors = running.communicate(timeout=240)
    assert running.returncode == code
    assert len(others) >= workers - 1
    while any(map(alive, others)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(alive, others)), "workers exit with their parent"
    finished = {path.name for path in to.glob("*.mp4")}
    assert 1 <= len(finished) < 20
    if number == signal.SIGTERM:
        assert "SIGTERM" in errors
        assert not list(to.rglob("*.partial"))
    else:
        (to / "0.mp4.partial").write_text("left behind")
    result = prepare(long_table, to, encoding=Encoding())
    assert result.kept >= len(finished) - 2, "files without a journal entry are encoded again"
    assert result.made + result.kept == 20
    assert not list(to.rglob("*.partial"))
    assert {len(frame_times(path)) for path in to.glob("*.mp4")} == {240}
