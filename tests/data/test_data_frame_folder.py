from fractions import Fraction

import av
import pytest

from art.data.datasets.clips import Clip, ClipSet
from art.data.decoding.video import (
    VideoError,
    decoded_bytes,
    frame_times,
    iterate_frames,
    read_chosen,
    read_clip,
    read_frames,
)
from art.data.loading.dataset import ClipDataset, check_clip_set
from art.data.transforms.sampling import segment_indices


def save(path, array):
    """One picture, of the kind that its name says."""
    codec, pixels = ("png", "rgb24") if path.suffix.lower() == ".png" else ("mjpeg", "yuvj420p")
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = array.shape[1], array.shape[0], pixels
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pixels)
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))


@pytest.fixture
def folder(tmp_path, picture):
    """Writes numbered pictures under the given names: the i-th name shows i."""

    def write(*names, size=(32, 64)):
        path = tmp_path / "clip"
        path.mkdir(exist_ok=True)
        for i, name in enumerate(names):
            save(path / name, picture(i, *size))
        return path

    return write


@pytest.mark.parametrize("pattern", ["{:05d}.jpg", "img_{:05d}.JPG", "{}.png", "frame{:03d}.jpeg", "a.b-{}.png"])
def test_frames_are_in_the_order_of_their_numbers(pattern, folder, read_numbers):
    path = folder(*[pattern.format(i) for i in range(1, 13)])
    assert read_numbers(read_frames(path)) == list(range(12))
    assert read_numbers(read_clip(path, 5)) == segment_indices(12, 5).tolist()
    assert decoded_bytes(path, short_side=16) == read_frames(path, short_side=16).nbytes == 12 * 3 * 16 * 32


def test_steps_and_mixed_kinds_of_pictures_and_other_files(folder, read_numbers):
    path = folder("0.jpg", "5.png", "10.jpeg", "15.jpg")
    (path / "labels.txt").write_text("walk")
    (path / ".00003.jpg").write_text("hidden")
    (path / "Thumbs.db").touch()
    assert read_numbers(read_frames(path)) == [0, 1, 2, 3]


def test_only_wanted_frames_are_opened(folder, read_numbers):
    path = folder(*[f"{i:02d}.jpg" for i in range(1, 10)])
    for i in (1, 4, 9):  # 0, 3 and 8 by position
        (path / f"{i:02d}.jpg").write_bytes(b"broken")
    assert read_numbers(read_chosen(path, lambda count: [count - 2, 1, 4])) == [7, 1, 4]
    with pytest.raises(VideoError, match=r"holds 01.jpg, which is no JPEG or PNG picture"):
        read_frames(path)


BROKEN = {
    "a gap": (("1.jpg", "2.jpg", "4.jpg"), "lacks frame 3, between 2 and 4$"),
    "gaps": (("01.jpg", "02.jpg", "05.jpg", "07.jpg"), r"lacks frame 3, between 2 and 5 \(3 are missing in all\)"),
    "twice": (("00001.jpg", "00001.png"), "holds frame 1 twice: 00001.jpg and 00001.png"),
    "two series": (("flow_x_1.jpg", "flow_y_1.jpg"), "holds frame 1 twice: flow_x_1.jpg and flow_y_1.jpg"),
    "no number": (("1.jpg", "cover.jpg"), "holds cover.jpg, a picture without a number at the end of its name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_series_is_named(name, folder):
    names, message = BROKEN[name]
    with pytest.raises(VideoError, match=message) as caught:
        read_frames(folder(*names))
    assert caught.value.path.name == "clip"


def test_pictures_that_are_none_are_named(folder, picture):
    path = folder("1.jpg", "2.png", "3.jpg", "4.jpg")
    whole = {p.name: p.read_bytes() for p in path.iterdir()}
    for name, content, message in (
        ("1.jpg", b"", r"holds 1.jpg, which is empty \(0 bytes\)"),
        ("1.jpg", b"text", "holds 1.jpg, which is no JPEG or PNG picture"),
        ("1.jpg", whole["1.jpg"][: len(whole["1.jpg"]) // 2], "holds 1.jpg, which is truncated"),
        ("2.png", whole["2.png"][:-20], "holds 2.png, which is truncated"),
        ("2.png", whole["2.png"][:60] + whole["2.png"][-12:], "holds 2.png, which (cannot be read|is damaged)"),
    ):
        (path / name).write_bytes(content)
        with pytest.raises(VideoError, match=message):
            read_frames(path)
        (path / name).write_bytes(whole[name])
    save(path / "3.jpg", picture(3, 64, 64))
    with pytest.raises(VideoError, match="changes its picture size from 64×32 to 64×64"):
        read_frames(path)


def test_folders_that_hold_no_frames(tmp_path):
    with pytest.raises(VideoError, match=r"is a folder without frames \(.jpg, .jpeg, .png\): it holds nothing"):
        read_frames(tmp_path)
    for name in "abcd":
        (tmp_path / f"{name}.mp4").touch()
    with pytest.raises(VideoError, match=r"it holds a.mp4, b.mp4, c.mp4, …"):
        read_frames(tmp_path)


def test_a_folder_tells_no_times(folder):
    path = folder("1.jpg", "2.jpg")
    with pytest.raises(VideoError, match="nothing tells the time: a part by seconds cannot be found"):
        read_clip(path, 2, start=0.5)
    for call in (frame_times, lambda p: list(iterate_frames(p))):
        with pytest.raises(VideoError, match=r"in which nothing tells the time|is not a file"):
            call(path)


def test_folders_and_files_together_are_a_data_set(folder, tmp_path, numbered, read_numbers):
    path = folder(*[f"{i}.jpg" for i in range(1, 9)])
    clips = (Clip(path, 0), Clip(numbered(tmp_path / "a.mp4", 8), 1))
    clip_set = ClipSet("mixed", "train", tmp_path, clips, ("a", "b"))
    assert check_clip_set(clip_set) == {}
    dataset = ClipDataset(clip_set, 4, train=False)
    assert [read_numbers(dataset[i]["video"]) for i in range(2)] == [segment_indices(8, 4).tolist()] * 2
