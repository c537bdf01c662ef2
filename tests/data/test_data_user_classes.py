import pytest

from art.data.datasets.user_classes import read_classes, read_mirror


def write(root, **files):
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"classes\.txt is empty"),
        ("a\n\nb\n", r"classes\.txt:2: is blank"),
        ("a\nb\na\n", r"classes\.txt:3: class 'a' is there already, in line 1"),
    ],
)
def test_a_wrong_class_list(text, message, tmp_path):
    write(tmp_path, classes__txt=text)
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path)


def test_a_declared_mirror(tmp_path):
    names = ("turn left", "turn right", "run")
    assert read_mirror(tmp_path, names) is None
    write(tmp_path, mirror__csv="class,mirror\n")
    assert read_mirror(tmp_path, names) == (0, 1, 2)
    write(tmp_path, mirror__csv="class,mirror\nturn right,turn left\n")
    assert read_mirror(tmp_path, names) == (1, 0, 2)
    write(tmp_path, mirror__csv="class,mirror\nturn right,turn lft\n")
    with pytest.raises(ValueError, match=r"mirror\.csv:2: 'turn lft' is no class; did you mean 'turn left'\?"):
        read_mirror(tmp_path, names)
