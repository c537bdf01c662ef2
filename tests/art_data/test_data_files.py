import pytest

from art.data.files import write_whole


def test_a_file_is_whole_or_not_there(tmp_path):
    def fail(path):
        path.write_text("half")
        raise KeyboardInterrupt

    target = tmp_path / "new" / "a.txt"
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, fail)
    assert list(target.parent.iterdir()) == []
    write_whole(target, lambda path: path.write_text("whole"))
    with pytest.raises(KeyboardInterrupt):
        write_whole(target, fail)
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]
    assert target.read_text() == "whole"
