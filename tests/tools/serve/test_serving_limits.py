import re

import pytest

from art.tools.serve.checking import check_clip
from art.tools.serve.limits import Asking, Limits, Refused


@pytest.fixture
def refused(tmp_path):
    """``refused(content, limits)``: what is said of a file with that content."""

    def ask(content, limits=None, name="clip.mp4"):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(Refused) as told:
            check_clip(path, limits or Limits())
        assert str(tmp_path) not in str(told.value)
        return str(told.value)

    return ask


@pytest.fixture(scope="module")
def content(write_video, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("limits") / "clip.mp4").read_bytes()


def test_a_clip_within_the_limits_passes(content, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(content)
    check_clip(tmp_path / "clip.mp4", Limits(seconds=0.9, frames=10, megapixels=96 * 64 / 1e6))


@pytest.mark.parametrize("name", ["clip.mov", "clip.mkv", "clip.avi", "clip.m4v", "clip.webm"])
def test_every_container_that_the_page_names_passes(write_video, tmp_path, name):
    path = write_video(tmp_path / name, codec="libvpx" if name.endswith("webm") else "libx264")
    check_clip(path.rename(tmp_path / "of any name"), Limits(seconds=0.9, frames=10))


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"seconds": 0.85}, "A clip may last 0.85 s here, and “clip.mp4” lasts 1.0 s. Cut it shorter."),
        ({"frames": 9}, "A clip may have 9 frames here, and “clip.mp4” has more."),
        ({"megapixels": 0.006}, "may have 0.006 megapixels here, and those of “clip.mp4” are 96×64"),
    ],
)
def test_limit_and_what_came_are_told(refused, content, limits, told):
    assert told in refused(content, Limits(**limits))


def test_a_broken_video_is_told_from_what_is_none(refused, content):
    assert "“clip.mp4” cannot be read: Invalid data" in refused(content[:200])
    assert "The file may be damaged" in refused(content[:200])
    assert refused(b"") == "“clip.mp4” is empty: there are 0 bytes in it."
    told = refused(b"notes of a meeting", name="notes.txt")
    assert "“notes.txt” is no video that this page reads. It takes MP4" in told


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\nhttp://127.0.0.1:9/x\n",
        b"ffconcat version 1.0\nfile other.mp4\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    ],
)
def test_what_names_other_files_is_never_opened(refused, content, monkeypatch):
    monkeypatch.setattr("art.tools.serve.checking.open_source", lambda path: pytest.fail("it was opened"))
    assert "is no video that this page reads" in refused(content)


def test_a_file_that_is_not_what_its_beginning_says(refused):
    # FFmpeg goes by more than the first bytes: here by those of a WebM file that begins like a QuickTime one.
    assert "cannot be read" in refused(b"\0\0\0\x10free" + bytes(8) + b"#EXTM3U\n" * 40)


@pytest.mark.parametrize("name", ["megabytes", "seconds", "frames", "megapixels"])
def test_a_limit_that_lets_nothing_through_is_an_error(name):
    with pytest.raises(ValueError, match=re.escape(f"--max-{name}: got 0, expected more than 0")):
        Limits(**{name: 0})
    with pytest.raises(ValueError, match=f"--max-{name}"):
        Limits(**{name: float("nan")})


@pytest.mark.parametrize(("name", "told"), [("top_k", "--top-k: got 0"), ("moments", "--moments: got -1")])
def test_numbers_out_of_range_are_errors(name, told):
    with pytest.raises(ValueError, match=told):
        Asking(**{name: int(told.rsplit(" ", 1)[1])})
