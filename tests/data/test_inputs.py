"""The clips of input paths, and deprecated names of art.data."""

import os

import pytest

import art.data.inputs
import art.tools.predict
from art.data.dataset import ClipDataset
from art.data.datasets.annotations import read_classes
from art.data.datasets.base import open_dataset
from art.data.files import read_json_mapping
from art.data.inputs import input_kind, open_inputs
from art.data.transforms.augment import CenterCrop
from art.train.config import load_config


def names(*paths):
    return [item.name for source in open_inputs(paths) for item in source.items]


@pytest.fixture
def root(write_files):
    write_files("b/2.mp4", "b/1.AVI", "a.webm", ".hidden/x.mp4", "b/.y.mp4", "notes.md")
    return write_files("frames/00001.jpg", "frames/00002.jpg")


def test_input_kind(root):
    kinds = {
        "a.webm": "video", "gone.mp4": "video", "frames": "directory", "x.csv": "table", "x.TXT": "list",
        "x.list": "list", "x.tar": "shard", "test.json": "index",
    }  # fmt: skip
    assert {name: input_kind(root / name) for name in kinds} == kinds


def test_directory_with_videos_and_directories_of_frames(root):
    assert names(root) == [str(root / name) for name in ("a.webm", "b/1.AVI", "b/2.mp4", "frames")]
    assert names(root / "frames") == [str(root / "frames")]


def test_missing_and_repeated_files(root):
    missing = root / "gone.mp4"
    assert names(missing, root / "a.webm", missing) == [str(missing), str(root / "a.webm")]


def test_table_with_times(root, write_files):
    write_files({"clips.csv": "id,path,time_start,time_end\n1,a.webm,,\n2,a.webm,1.5,2\n3,/else/c.mp4,,3\n"})
    (source,) = open_inputs([root / "clips.csv"])
    assert [(item.name, item.start, item.end) for item in source.items] == [
        (str(root / "a.webm"), None, None), (str(root / "a.webm"), 1.5, 2.0), ("/else/c.mp4", None, 3.0),
    ]  # fmt: skip


def test_list_with_and_without_labels(root, write_files):
    write_files({"clips.txt": "a.webm\nb/2.mp4 3\n\nframes 2 7\ngone one.mp4,4\n"})
    assert names(root / "clips.txt") == [str(root / name) for name in ("a.webm", "b/2.mp4", "frames", "gone one.mp4")]


@pytest.mark.parametrize(
    "name", ["clips.csv", "clips.tsv", "clips.txt", "test.json", "classes.txt", "run.yaml", "model.json"]
)
@pytest.mark.parametrize("kind", ["a named pipe", "a directory"])
def test_text_is_read_from_regular_files_only(name, kind, tmp_path):
    path = tmp_path / name
    os.mkfifo(path) if kind == "a named pipe" else path.mkdir()
    read = {
        "classes.txt": lambda: read_classes(tmp_path),
        "run.yaml": lambda: load_config(path),
        "model.json": lambda: read_json_mapping(path),
    }.get(name, lambda: open_inputs([path]))
    with pytest.raises((ValueError, OSError)) as caught:
        read()
    if kind == "a named pipe":
        assert str(path) in str(caught.value) and "regular file" in str(caught.value)


def test_clips_at_once(root):
    assert [len(source.items) for source in open_inputs([root], 3)] == [3, 1]
    with pytest.raises(ValueError, match="clips_at_once must be at least 1, got 0"):
        open_inputs([root], 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "clip\nx.mp4\n", "path"),
        ("a.csv", "path\n", "lists no clips"),
        ("a.csv", "path,time_start,time_end\nx.mp4,2,1\n", r"a\.csv:2: the clip from 2\.0 s to 1\.0 s has no duration"),
        ("a.csv", "path,label\n,2\n", r"a\.csv:2: path is empty"),
        ("a.txt", "\n", "lists no clips"),
        ("a.json", "{}", "is not a valid index of shards"),
    ],
)
def test_invalid_input(name, text, message, write_files):
    root = write_files({name: text})
    with pytest.raises(ValueError, match=message):
        open_inputs([root / name])


def test_inputs_without_clips(tmp_path):
    with pytest.raises(ValueError, match="contains no clips; expected video files"):
        open_inputs([tmp_path])
    with pytest.raises(FileNotFoundError):
        open_inputs([tmp_path / "gone.csv"])


def test_shards(clips, tmp_path):
    from art.data.shards import write_shards

    split = write_shards(open_dataset("csv", clips, "test"), tmp_path, shard_bytes=5000)
    sources = open_inputs([tmp_path / "test.json"], 1)
    assert [source.shard for source in sources] == [*split.shards]
    assert len(sources) > 1
    items = [item for source in sources for item in source.open()]
    assert sorted(item.name for item in items) == sorted(f"{s.shard}/{key}" for s in sources for key in s.keys)
    assert all(item.problem is None for item in items)
    assert len(items) == 6

    first = tmp_path / "test-000000.tar"
    (single,) = open_inputs([first], 1)
    expected = [item.name for item in sources[0].open()]
    assert [item.name for item in single.open()] == expected
    first.write_bytes(first.read_bytes()[:700])
    assert [item.name for item in sources[0].open()] == expected, "missing clips are reported"
    assert all("cannot be read" in item.problem or "not found" in item.problem for item in sources[0].open())
    first.unlink()
    (missing,) = single.open()
    assert missing.name == str(first)
    assert "cannot be read" in missing.problem


def test_deprecated_names(root, clip_set):
    with pytest.warns(DeprecationWarning, match="open_inputs"):
        assert art.data.inputs.find_sources([root], clips_at_once=3) == open_inputs([root], 3)
    with pytest.warns(DeprecationWarning, match="open_inputs"):
        assert art.tools.predict.find_sources is open_inputs
    with pytest.warns(DeprecationWarning, match="CenterCrop"):
        assert art.data.CentreCrop is CenterCrop
    with pytest.warns(DeprecationWarning, match="fraction"):
        assert CenterCrop(8, share=0.5).share == 0.5
    with pytest.warns(DeprecationWarning, match="max_failed_fraction"):
        assert ClipDataset(clip_set, 2, train=False, max_bad_share=0.5).max_failed_fraction == 0.5
