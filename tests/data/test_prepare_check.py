import json
from pathlib import Path

import av
import numpy as np
import pytest

from art.data.datasets import base
from art.data.datasets.base import Clip, ClipSet, RequiredFile, register_dataset
from art.data.prepare import check as check_module
from art.data.prepare.check import DatasetCheck, Problem, SplitCheck, as_table, check_dataset, open_splits


@pytest.fixture(autouse=True)
def isolated_registry(monkeypatch):
    base.dataset_entry("csv")
    monkeypatch.setattr(base, "_entries", dict(base._entries))


@pytest.fixture
def root(tmp_path, numbered):
    """Ten training clips of 60 frames (5 s): 0 missing, 1 empty, 2 text, 3 truncated, 4 damaged; and two test clips."""
    source = numbered(tmp_path / "source.mp4", 60, gop=60).read_bytes()
    root = tmp_path / "data"
    (root / "clips").mkdir(parents=True)
    start = source.index(b"mdat") + 800
    damaged = source[:start] + bytes(byte ^ 0x55 for byte in source[start : start + 40]) + source[start + 40 :]
    contents = {1: b"", 2: b"no video " * 20, 3: source[: len(source) // 2], 4: damaged}
    for i in range(1, 12):
        (root / f"clips/{i}.mp4").write_bytes(contents.get(i, source))
    (root / "train.csv").write_text("path,label\n" + "".join(f"clips/{i}.mp4,{'ab'[i % 2]}\n" for i in range(10)))
    (root / "test.csv").write_text("path,label\nclips/10.mp4,a\nclips/11.mp4,b\n")
    return root


def check(root, level, name="csv", **options):
    return check_dataset(name, root, level=level, workers=1, progress=False, **options)


@pytest.mark.parametrize(("level", "broken"), [("exist", "1"), ("open", "123"), ("decode", "1234")])
def test_levels(level, broken, root):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}
    test, train = check(root, level).splits
    assert (test.split, train.split) == ("test", "train")
    assert (test.problems, test.failed_fraction) == ((), 0)
    found = {Path(problem.clip).stem: problem.kind for problem in train.problems}
    assert found == {"0": "missing", **dict.fromkeys(broken, "broken")}
    assert (train.clips, train.files) == (10, 10)
    assert train.failed_fraction == pytest.approx(len(found) / 10)
    assert check(root, level).failed_fraction == train.failed_fraction
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()} == before


def test_clips_of_one_file(tmp_path, numbered):
    numbered(tmp_path / "a.mp4", 60)
    spans = [("0", "1"), ("4.9", "5.2"), ("5.5", "6"), ("4", "8"), ("", "")]
    (tmp_path / "train.csv").write_text(
        "path,label,time_start,time_end\n" + "".join(f"a.mp4,{i % 2},{a},{b}\n" for i, (a, b) in enumerate(spans))
    )
    for level in ("open", "decode"):
        (train,) = check(tmp_path, level).splits
        assert (train.clips, train.files) == (5, 1)
        found = {(problem.start, problem.end): (problem.kind, problem.reason) for problem in train.problems}
        assert found == {
            (5.5, 6.0): ("broken", "has no video frame from 5.5 s to 6 s"),
            (4.0, 8.0): ("doubtful", "the video ends at 5.00 s, 3.00 s before the clip does"),
        }
        assert train.failed_fraction == 0.2


def test_clips_of_a_damaged_file_are_checked_separately(tmp_path, numbered):
    path = numbered(tmp_path / "a.avi", 120, codec="mpeg4", gop=12)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    (tmp_path / "train.csv").write_text("path,label,time_start,time_end\na.avi,0,0,1\na.avi,1,9,10\na.avi,1,,\n")
    for level in ("open", "decode"):
        (train,) = check(tmp_path, level).splits
        found = {(problem.start, problem.end): problem for problem in train.problems}
        expected = {(0.0, 1.0): "doubtful", (9.0, 10.0): "broken", (None, None): "broken"}
        assert {span: problem.kind for span, problem in found.items()} == expected
        assert "truncated" in found[None, None].reason


def test_frames_before_the_first_keyframe_are_doubtful(tmp_path, numbered):
    with (
        av.open(str(numbered(tmp_path / "whole.mp4", 36, gop=12))) as old,
        av.open(str(tmp_path / "a.mp4"), "w") as new,
    ):
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in [packet for packet in old.demux(video=0) if packet.size][1:]:
            packet.stream = stream
            new.mux(packet)
    (tmp_path / "train.csv").write_text("path,label,time_start,time_end\na.mp4,0,,\na.mp4,0,2,3\n")
    for level in ("open", "decode"):
        ((problem,),) = (split.problems for split in check(tmp_path, level).splits)
        assert (problem.start, problem.kind) == (None, "doubtful")
        assert "cannot be decoded, because they precede the first keyframe" in problem.reason


def test_selected_splits_open_each_file_once(root, monkeypatch):
    (root / "val.csv").write_text((root / "test.csv").read_text())
    opened, times = [], check_module.frame_times
    monkeypatch.setattr(check_module, "frame_times", lambda path, **span: opened.append(path) or times(path, **span))
    assert [split.split for split in check(root, "open", splits=["test", "val"]).splits] == ["test", "val"]
    assert sorted(path.name for path in opened) == ["10.mp4", "11.mp4"]
    with pytest.raises(ValueError, match="splits: 'valid' is not a split of 'csv'; expected test, train, val"):
        check(root, "open", splits=["valid"])


def test_directories_of_frames(tmp_path):
    image = av.VideoFrame.from_ndarray(np.zeros((32, 64, 3), np.uint8), "rgb24")
    for name, numbers in {"good": (1, 2, 3), "gap": (1, 2, 4, 5), "empty": ()}.items():
        directory = tmp_path / "train" / "waving" / name
        directory.mkdir(parents=True)
        for number in numbers:
            image.save(str(directory / f"{number:05d}.png"))
    (tmp_path / "train" / "waving" / "empty" / "notes.txt").write_text("no frames")
    clips = tuple(Clip(tmp_path / "train/waving" / name, 0) for name in ("good", "gap", "empty"))
    register_dataset("frames", splits=("train",))(lambda root, split: ClipSet("frames", split, root, clips, ("wave",)))
    for level in ("open", "decode"):
        (train,) = check(tmp_path, level, "frames").splits
        assert [(Path(problem.clip).name, problem.kind) for problem in train.problems] == [
            ("gap", "broken"), ("empty", "broken"),
        ]  # fmt: skip


def test_notes_on_splits(tmp_path, numbered):
    source = numbered(tmp_path / "a.mp4", 6)
    for name in "bcd":
        (tmp_path / f"{name}.mp4").write_bytes(source.read_bytes() + name.encode())
    (tmp_path / "train.csv").write_text("path,label\na.mp4,run\nb.mp4,walk\n")
    (tmp_path / "test.csv").write_text("path,label\na.mp4,run\nc.mp4,walk\n")
    result = check(tmp_path, "exist")
    assert len(result.notes) == 1 and result.failed_fraction == 0
    assert result.as_json()["notes"] == list(result.notes)
    assert "note: 1 of 2 clips are in both 'train' and 'test', such as a.mp4: " in as_table(result)
    assert check(tmp_path, "exist", splits=["test"]).notes == ()


def test_split_that_cannot_be_opened(tmp_path, root):
    def files(directory):
        names = {"test.csv": ("test",), "extra.json": ("train", "test"), "test.json": ("test",)}
        listed = [(directory / name, splits) for name, splits in names.items()]
        return tuple(RequiredFile(path, path.exists(), "https://example.org/x", splits) for path, splits in listed)

    def opener(directory, split):
        if split == "test":
            raise FileNotFoundError(f"{split}.json is not there")
        return base.open_dataset("csv", directory, split)

    register_dataset("mine", splits=("train", "test"), required_files=files)(opener)
    result = check(root, "exist", "mine")
    train, test = result.splits
    assert (train.error, test.error) == (None, "test.json is not there")
    assert test.failed_fraction == result.failed_fraction == 1
    table = as_table(result)
    assert "test cannot be opened: test.json is not there" in table
    assert f"missing {root / 'extra.json'} (for train, test), available from https://example.org/x" in table
    assert "test.csv" not in table
    assert table.count("test.json") == 1, "not repeated if the error names it"
    assert result.as_json()["annotation_files"][0]["found"] is True


def test_table(root):
    for i in (5, 6, 7, 8):
        (root / f"clips/{i}.mp4").unlink()
    table = as_table(check(root, "open"))
    assert table.splitlines()[0] == f"csv in {root}: opened every file and listed its frames"
    assert [line.split() for line in table.splitlines()[2:5]] == [
        ["split", "clips", "files", "good", "missing", "broken", "bad"],
        ["test", "2", "2", "2", "0", "0", "0.00%"],
        ["train", "10", "10", "2", "5", "3", "80.00%"],
    ]
    lines = table.splitlines()
    first = lines.index("5 clips missing: there is no such file")
    assert lines[first + 1 : first + 5] == ["    clips/0.mp4", "    clips/5.mp4", "    clips/6.mp4", "    and 2 more"]
    assert "1 clip broken: is empty (0 bytes)" in table
    assert "    clips/3.mp4" in table


def test_table_groups_reasons_that_differ_only_in_numbers():
    reasons = [f"is truncated: it ends after {i}.5 s, but its header specifies 10.25 s" for i in range(3)]
    problems = [Problem(f"{i}.avi", None, None, "broken", reason) for i, reason in enumerate(reasons)]
    problems += [Problem("3.avi", 0.0, 2.5, "broken", "has no video, only audio")]
    table = as_table(DatasetCheck("csv", Path("x"), "open", (), (SplitCheck("train", 9, 9, tuple(problems)),)))
    assert table.splitlines()[5:] == [
        f"3 clips broken: {reasons[0]}",
        *(f"    {i}.avi" for i in range(3)),
        "1 clip broken: has no video, only audio",
        "    3.avi [0..2.5 s]",
    ]


def test_json(root):
    content = json.loads(json.dumps(check(root, "open").as_json()))
    assert (content["dataset"], content["root"], content["check"]) == ("csv", str(root), "open")
    train = content["splits"]["train"]
    assert (train["clips"], train["files"], train["missing"], train["broken"], train["error"]) == (10, 10, 1, 3, None)
    first = {"clip": "clips/0.mp4", "start": None, "end": None, "kind": "missing", "reason": "there is no such file"}
    assert train["problems"][0] == first


@pytest.mark.slow
def test_workers_find_the_same_problems(root, monkeypatch):
    monkeypatch.setattr(check_module, "_MIN_FILES_PER_WORKER", 1)
    assert check_dataset("csv", root, workers=2, progress=False) == check(root, "open")


def test_invalid_arguments(root, tmp_path):
    with pytest.raises(ValueError, match="level must be one of exist, open, decode, got 'look'"):
        check(root, "look")
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        check_dataset("csv", root, workers=0)
    with pytest.raises(FileNotFoundError, match=r"root .* does not exist"):
        check(tmp_path / "nowhere", "open")
    with pytest.raises(ValueError, match="did you mean 'csv'"):
        check(root, "open", "cvs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no split 'train'; found: none"):
        open_splits("csv", tmp_path / "empty")
