"""Where shards may be, and shards and indexes that are damaged or written by others: what they contain is data."""

import io
import json
import random
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from art.cli import main
from art.data.dataset import ShardDataset
from art.data.datasets.base import open_dataset
from art.data.decoding.video import VideoError, read_clip
from art.data.inputs import open_inputs
from art.data.shards import open_shards, read_shard
from art.train.config import ConfigError, load_config

_SIDE_EFFECTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.")
_watched: list[str] | None = None


def _audit(event, _):
    if _watched is not None and event.startswith(_SIDE_EFFECTS):
        _watched.append(event)


@pytest.fixture(scope="module")
def _audit_hook():
    sys.addaudithook(_audit)  # cannot be removed, only disabled


@pytest.fixture
def no_side_effects(_audit_hook):
    """Fails if a command is run or a socket is opened."""
    global _watched
    _watched = found = []
    yield
    _watched = None
    assert not found


def edit_index(directory, **fields):
    """Change fields of the index, as if it had been written without a checksum."""
    path = directory / "train.json"
    content = json.loads(path.read_text()) | fields
    content.pop("crc32", None)
    path.write_text(json.dumps(content))


@pytest.fixture
def remote(monkeypatch):
    """Replaces fsspec's file systems: URLs below a prefix are files of a local directory, which the test sets."""
    fsspec = pytest.importorskip("fsspec")
    roots = {}

    class Files:
        def open(self, url, mode):
            (prefix,) = (prefix for prefix in roots if url.startswith(prefix))
            return (roots[prefix] / url.removeprefix(prefix)).open(mode)

    monkeypatch.setattr(fsspec, "filesystem", {"s3": Files(), "gs": Files(), "hf": Files(), "https": Files()}.get)
    return roots


@pytest.mark.parametrize("scheme", ["s3", "gs", "hf", "https"])
def test_remote_shards(scheme, shards, tmp_path, remote):
    url = f"{scheme}://bucket/set"
    remote[f"{url}/"] = tmp_path / "shards"
    there = open_dataset("shards", f"{url}/", "train")
    assert there.shards[1] == f"{url}/train-000001.tar"
    assert torch.equal(
        ShardDataset(there, 2, train=False)[5]["video"], ShardDataset(shards, 2, train=False)[5]["video"]
    )
    assert torch.equal(read_clip(there.clips[9].path, 3), read_clip(shards.clips[9].path, 3))
    sources = {source.shard: source for source in open_inputs([f"{url}/train.json"])}
    assert list(sources) == list(there.shards)
    (single,) = open_inputs([there.shards[2]])
    items = list(single.open())
    assert items == list(sources[there.shards[2]].open()) and len(items) == 4
    assert all(item.problem is None for item in items)
    remote[f"{url}/"] = tmp_path / "nowhere"
    with pytest.raises(VideoError, match=r"train\.json cannot be read: FileNotFoundError"):
        read_clip(there.clips[9].path, 3)
    assert "FileNotFoundError" in next(single.open()).problem


def test_only_shards_can_be_remote(monkeypatch):
    with pytest.raises(ValueError, match="dataset 'csv' must be local"):
        open_dataset("csv", "s3://bucket/set", "train")
    with pytest.raises(ValueError, match=r"only shards .* can be remote"):
        open_inputs(["https://host/clip.mp4"])
    for root in ("http://host/set", "pipe:cat", "sftp://host/set", "file:///data", Path("s3://bucket/set")):
        with pytest.raises(ValueError, match=r"root '.*' is .* data\.root=URL"):
            open_shards(root, "train")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'art-kernels\[remote\]'"):
        open_shards("s3://bucket/set", "train")


def test_a_file_cannot_enable_remote_data(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {name: shards, root: 's3://bucket/set'}\n")
    with pytest.raises(ConfigError, match=r"data\.root: s3://bucket/set is a URL in .*run\.yaml"):
        load_config(tmp_path / "run.yaml", ["data.workers=0"])
    assert load_config(tmp_path / "run.yaml", ["data.root=s3://bucket/set"]).data.root == "s3://bucket/set"


@pytest.mark.parametrize("command", [["predict"], ["predict", "--json"], ["explain"]])
def test_arguments_of_commands_run_nothing(command, tmp_path, shards, no_side_effects, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("art.tools.predict.ClipPredictor", lambda *_: None)
    for argument in ("pipe:touch RUN; cat shards/train-000000.tar", "ais://host/a.tar", "http://127.0.0.1/a.tar"):
        assert main([*command, argument, "--checkpoint", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("art: error: ") and argument[:5] in error and error.count("\n") == 1
    assert not (tmp_path / "RUN").exists()


def test_an_entry_of_a_list_is_a_local_path(tmp_path, shards, no_side_effects):
    lines = ["https://127.0.0.1/a.mp4", "pipe:cat x.tar", "s3://bucket/set/train-000000.tar/00000000"]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    items = [item for source in open_inputs([tmp_path / "list.txt"]) for item in source.open()]
    assert len(items) == 3
    for item in items:
        with pytest.raises(VideoError, match=r"there is no such file|is in a shard without an index"):
            read_clip(item.place, 2)


@pytest.mark.parametrize("scheme", ["pipe:", "s3:", "https:", "ais:", "GS:", "file:"])
@pytest.mark.parametrize("rest", ["touch RUN; cat shards/{}", "//127.0.0.1/{}"])
def test_an_index_cannot_name_a_url(scheme, rest, shards, tmp_path, no_side_effects, monkeypatch):
    monkeypatch.chdir(tmp_path)
    edit_index(tmp_path / "shards", url=scheme + rest)
    for read in (
        lambda: open_shards("shards", "train"),
        lambda: open_inputs(["shards/train.json"]),
        lambda: read_clip(shards.clips[0].path, 2),
    ):
        with pytest.raises((ValueError, VideoError), match=rf"train\.json: url '{scheme}.*data\.root=URL"):
            read()
    assert not (tmp_path / "RUN").exists()


@pytest.mark.parametrize("url", ["", "{}", "/data/{}"])
@pytest.mark.parametrize(
    "name", ["pipe:touch RUN", "../a.tar", "/etc/passwd", "s3://b/a.tar", "a::b.tar", "..", "", "a\n"]
)
def test_a_shard_is_the_name_of_a_file(name, url, shards, tmp_path, no_side_effects):
    edit_index(tmp_path / "shards", shards=[name] * 10, url=url)
    with pytest.raises(ValueError, match=r"train\.json: the name of a shard is "):
        open_shards(tmp_path / "shards", "train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clips": [[0, "../../../etc/passwd", 0]]}, "the key of a clip is"),
        ({"clips": [[0, "/etc/passwd", 0]]}, "the key of a clip is"),
        ({"clips": [[-1, "00000000", 0]]}, "clips has shard -1, expected 0 to 9"),
        ({"clips": [[10, "00000000", 0]]}, "clips has shard 10, expected 0 to 9"),
        ({"clips": [[0, "00000000", 0.5]]}, "expected .shard, key, label."),
        ({"clips": [[0, "00000000", True]]}, "expected .shard, key, label."),
        ({"clips": [[0, "00000000", 7]]}, "has label 7, expected 0 to 2"),
        ({"clips": None}, "TypeError"),
        ({"class_names": "abc"}, "class_names is 'abc', expected a list of str"),
        ({"class_names": ["a", "b", "\ud800"]}, "UnicodeEncodeError"),
        ({"mirror": ["a", "b", "c"]}, "mirror is .*, expected a list of int"),
        ({"mirror": [5] * 10_000}, "mirror must hold"),
        ({"url": None}, "url is None, expected a string"),
        ({"format": ["x"] * 1000}, "its format is"),
        *(
            ({field: value}, f"{field} is .*, expected a")
            for field in ("name", "url", "shards", "clips", "class_names", "prompts", "groups", "mirror", "missing")
            for value in (None, {}, True, 1.5)
            if (field, value) != ("mirror", None)
        ),
    ],
)
def test_values_of_an_index_are_checked(fields, message, shards, tmp_path):
    edit_index(tmp_path / "shards", **fields)
    with pytest.raises(ValueError, match=rf"train\.json is not a valid index of shards: .*{message}") as caught:
        open_shards(tmp_path / "shards", "train")
    assert len(str(caught.value)) < 700


def test_local_paths_in_an_index_and_names_with_a_colon(shards, tmp_path):
    root = (tmp_path / "shards").rename(tmp_path / "take:1")
    for url in ("", str(root), f"{root}/{{}}", ".", "../take:1"):  # absolute, or relative to the index
        edit_index(root, url=url)
        assert len(list(read_shard(open_shards(root, "train").shards[3]))) == 4


def write_tar(path, *members, end=True):
    """Members are a name, and the content or the fields of a member without content."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, value in members:
            member = tarfile.TarInfo(name)
            if isinstance(value, bytes):
                member.size = len(value)
            else:
                for field, setting in value.items():
                    setattr(member, field, setting)
            tar.addfile(member, io.BytesIO(value) if isinstance(value, bytes) else None)
        size = tar.offset
    path.write_bytes(content.getvalue()[: None if end else size])
    return path


METADATA = b'{"files": ["mp4"]}'
GOOD = (("0.mp4", b"video"), ("0.json", METADATA))


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ((), "contains no clips"),
        ((("readme.txt", b"text"), ("0.pdf", b"text")), "contains no clips"),
        ((("0.mp4", b"video"),), "clip 0 is incomplete"),
        ((("0.mp4", b"video"), ("0.json", b'{"label": 1}')), "clip 0 is incomplete"),
        ((("0.json", METADATA),), "clip 0 is incomplete"),
        (
            (("0.mp4", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), ("0.json", METADATA)),
            "clip 0 is incomplete",
        ),
        ((("0.mp4", {"type": tarfile.LNKTYPE, "linkname": "0.json"}), ("0.json", METADATA)), "clip 0 is incomplete"),
        ((("0.mp4", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}), ("0.json", METADATA)), "is incomplete"),
        ((("0.mp4", {"type": tarfile.GNUTYPE_SPARSE}), ("0.json", METADATA)), "is incomplete"),
        ((("0.mp4", b"video"), ("0.mp4", b"other"), ("0.json", METADATA)), "is incomplete"),
        ((("0.mp4", b"video"), ("0.json", b"[" * 100_000)), "is incomplete or damaged"),
        ((("0.mp4", b"video"), ("0.json", b'{"files": 3}')), "is incomplete or damaged"),
        ((("0.mp4", b"video"), ("0.json", b'{"files": ["mp4"], "crc32": [0]}')), "checksum"),
        ((("0.mp4", {"size": 2**62}),), "cannot be read: "),
        ((("0.mp4", {"size": -512}),), "cannot be read: "),
        ((("0.x", {"type": b"Z", "size": 2**62}),), "cannot be read: "),
    ],
)
def test_members_that_are_not_clips(members, problem, tmp_path, no_side_effects):
    path = write_tar(tmp_path / "a.tar", *members)
    (item,) = next(iter(open_inputs([path]))).open()
    assert item.place is None and str(path) in item.problem and problem in item.problem
    path = write_tar(tmp_path / "a.tar", ("1.mp4", b"one"), ("1.json", METADATA), *members)
    if members and "no clips" not in problem:  # the clips before it are read, and the problem is reported
        good, bad = next(iter(open_inputs([path]))).open()
        assert good.place.files == {"mp4": b"one"} and problem in bad.problem


@pytest.mark.parametrize("name", ["../../0", "/etc/0", "a/b/0"])
def test_names_of_members_are_no_paths(name, tmp_path):
    path = write_tar(tmp_path / "a.tar", *((f"{name}{member[1:]}", content) for member, content in GOOD))
    ((key, clip),) = read_shard(path)
    assert (key, clip.files) == (name, {"mp4": b"video"})
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]


def test_shards_that_are_not_complete_files(tmp_path):
    path = write_tar(tmp_path / "a.tar", *GOOD, end=False)  # cut off between two members
    good, bad = next(iter(open_inputs([path]))).open()
    assert good.place is not None and "truncated" in bad.problem
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="is not a regular file"):
        list(read_shard(path))


@pytest.mark.parametrize("part", ["shard", "index"])
def test_mutations(part, shards, tmp_path, no_side_effects):
    original = dict(read_shard(shards.shards[0]))
    path = Path(shards.shards[0]) if part == "shard" else tmp_path / "shards" / "train.json"
    whole, generator = path.read_bytes(), random.Random(0)
    failed = 0
    for _ in range(60):
        content = bytearray(whole)
        kind, at = generator.randrange(4), generator.randrange(len(content))
        if kind == 0:
            content[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            content[at:] = b""
        elif kind == 2:
            content[at : at + 700] = generator.randbytes(generator.randrange(1400))
        else:
            content[at:at] = content[generator.randrange(len(content)) :][:512]
        path.write_bytes(content)
        try:
            opened = open_shards(tmp_path / "shards", "train")
            assert opened == shards
            assert all(clip.files == original[key].files for key, clip in read_shard(opened.shards[0]))
        except (OSError, ValueError) as error:
            failed += 1
            assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 700
    assert failed > 30
