import pytest

from art.data import files
from art.data.files import atomic_write, check_writable


def test_a_file_is_whole_or_not_there(tmp_path):
    def fail(path):
        path.write_text("half")
        raise KeyboardInterrupt

    target = tmp_path / "new" / "a.txt"
    with pytest.raises(KeyboardInterrupt):
        atomic_write(target, fail)
    assert list(target.parent.iterdir()) == []
    atomic_write(target, lambda path: path.write_text("whole"))
    with pytest.raises(KeyboardInterrupt):
        atomic_write(target, fail)
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]
    assert target.read_text() == "whole"


def test_a_folder_that_cannot_be_written_to_is_found_before(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder", "--out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"--out .*file is no folder"):
        check_writable(tmp_path / "file" / "folder", "--out")
    monkeypatch.setattr(files.os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(ValueError, match=r"--to .*folder cannot be written to"):
        check_writable(tmp_path / "new" / "folder", "--to")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
