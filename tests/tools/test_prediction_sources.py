"""Which clips a path means."""

import pytest

from art.data.datasets.registry import open_dataset
from art.tools.predict import find_sources


def names(*paths, at_once=100):
    return [item.name for source in find_sources(paths, at_once) for item in source.items]


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.mp4", "b/1.AVI", "a.webm", ".hidden/x.mp4", "b/.y.mp4", "frames/00001.jpg", "frames/00002.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "notes.md").touch()
    return tmp_path


def test_videos_and_folders_of_frames_at_any_depth(folder):
    assert names(folder) == [str(folder / name) for name in ("a.webm", "b/1.AVI", "b/2.mp4", "frames")]
    assert names(folder / "frames") == [str(folder / "frames")]


def test_a_file_is_a_clip_whether_it_is_there_or_not(folder):
    gone = folder / "gone.mp4"
    assert names(gone, folder / "a.webm", gone) == [str(gone), str(folder / "a.webm")], "each once"


def test_a_table_with_times(folder):
    table = folder / "clips.csv"
    table.write_text("id,path,time_start,time_end\n1,a.webm,,\n2,a.webm,1.5,2\n3,/else/c.mp4,,3\n")
    (source,) = find_sources([table], 100)
    told = [(item.name, item.start, item.end) for item in source.items]
    assert told == [
        (str(folder / "a.webm"), None, None), (str(folder / "a.webm"), 1.5, 2.0), ("/else/c.mp4", None, 3.0),
    ]  # fmt: skip


def test_a_list_with_or_without_labels(folder):
    listed = folder / "clips.txt"
    listed.write_text("a.webm\nb/2.mp4 3\n\nframes 2 7\ngone one.mp4,4\n")
    assert names(listed) == [str(folder / name) for name in ("a.webm", "b/2.mp4", "frames", "gone one.mp4")]


def test_files_are_taken_some_at_once(folder):
    assert [len(source.items) for source in find_sources([folder], 3)] == [3, 1]
    with pytest.raises(ValueError, match="clips_at_once must be at least 1, got 0"):
        find_sources([folder], 0)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "clip\nx.mp4\n", "path"),
        ("a.csv", "path\n", "lists no clips"),
        ("a.csv", "path,time_start,time_end\nx.mp4,2,1\n", r"a\.csv:2: the clip from 2\.0 s to 1\.0 s has no duration"),
        ("a.csv", "path,time_start\nx.mp4,soon\n", r"a\.csv:2: time_start is 'soon'"),
        ("a.csv", "path,label\n,2\n", r"a\.csv:2: path is empty"),
        ("a.txt", "\n", "lists no clips"),
        ("a.json", "{}", "is no index of shards"),
    ],
)
def test_what_lists_no_clips_is_told_with_its_line(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=told):
        find_sources([tmp_path / name], 10)


def test_an_empty_folder_is_no_clip(tmp_path):
    with pytest.raises(ValueError, match="holds no clips; expected video files"):
        find_sources([tmp_path], 10)
    with pytest.raises(FileNotFoundError):
        find_sources([tmp_path / "gone.csv"], 10)


def test_shards_by_their_index_or_one_by_one(clips, tmp_path):
    pytest.importorskip("webdataset", reason="shards are read by webdataset, which is not installed")
    from art.data.loading.shards import write_shards

    split = write_shards(open_dataset("csv", clips, "test"), tmp_path, shard_bytes=5000)
    sources = find_sources([tmp_path / "test.json"], 1)
    assert [source.shard for source in sources] == [*split.shards]
    assert len(sources) > 1
    items = [item for source in sources for item in source.open()]
    assert sorted(item.name for item in items) == sorted(f"{s.shard}/{key}" for s in sources for key in s.keys)
    assert all(item.problem is None for item in items)
    assert len(items) == 6

    first = tmp_path / "test-000000.tar"
    (alone,) = find_sources([first], 1)
    known = [item.name for item in sources[0].open()]
    assert [item.name for item in alone.open()] == known
    first.write_bytes(first.read_bytes()[:700])
    assert [item.name for item in sources[0].open()] == known, "what the shard should hold is told of"
    assert all("cannot be read" in item.problem or "does not hold" in item.problem for item in sources[0].open())
    first.unlink()
    (gone,) = alone.open()
    assert gone.name == str(first)
    assert "cannot be read" in gone.problem
