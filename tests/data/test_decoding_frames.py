from fractions import Fraction

import av
import pytest

from art.data import Clip, ClipDataset, ClipSet
from art.data.decoding.containers import complete_size
from art.data.decoding.frames import scaled_size
from art.data.decoding.video import (
    VideoError,
    decoded_bytes,
    frame_times,
    iterate_frames,
    read_chosen,
    read_clip,
    read_frames,
)
from art.data.transforms.sampling import segment_indices

CODECS = {".png": ("png", "rgb24"), ".bmp": ("bmp", "bgr24"), ".webp": ("libwebp", "yuv420p")}


def save(path, array):
    """Write an image of the type given by the suffix."""
    codec, pixels = CODECS.get(path.suffix.lower(), ("mjpeg", "yuvj420p"))
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = array.shape[1], array.shape[0], pixels
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=pixels)
    frame.pts = 0
    path.write_bytes(b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)]))


@pytest.fixture
def frame_directory(tmp_path, draw_number):
    """Writes images under the given names; the i-th image shows i."""

    def write(*names, size=(32, 64)):
        path = tmp_path / "clip"
        path.mkdir(exist_ok=True)
        for i, name in enumerate(names):
            save(path / name, draw_number(i, *size))
        return path

    return write


@pytest.mark.parametrize(
    "pattern",
    [
        "{:05d}.jpg",
        "img_{:05d}.JPG",
        "{}.png",
        "frame{:03d}.jpeg",
        "a.b-{}.png",
        "{}.bmp",
        "{:03d}.webp",
        "shot1.{:04d}.jpg",
        "v1.2_{}.jpg",
        "img ({}).jpg",
        "{:04d}_rgb.png",
    ],
)
def test_frames_are_sorted_by_number(pattern, frame_directory, read_numbers):
    path = frame_directory(*[pattern.format(i) for i in range(1, 13)])
    assert read_numbers(read_frames(path)) == list(range(12))
    assert read_numbers(read_clip(path, 5)) == segment_indices(12, 5).tolist()
    assert decoded_bytes(path, short_side=16) == read_frames(path, short_side=16).nbytes == 12 * 3 * 16 * 32


def test_steps_mixed_types_and_other_files(frame_directory, read_numbers):
    path = frame_directory("0.jpg", "5.png", "10.jpeg", "15.jpg")
    for name in ("labels.txt", ".00003.jpg", "Thumbs.db"):
        (path / name).touch()
    assert read_numbers(read_frames(path)) == [0, 1, 2, 3]
    with pytest.raises(VideoError, match="has no timestamps, so a start or end in seconds cannot be located"):
        read_clip(path, 2, start=0.5)
    for call in (frame_times, lambda p: list(iterate_frames(p))):
        with pytest.raises(VideoError, match=r"which has no timestamps|is not a file"):
            call(path)


def test_only_requested_frames_are_opened(frame_directory, read_numbers):
    path = frame_directory(*[f"{i:02d}.jpg" for i in range(1, 10)])
    for i in (1, 4, 9):  # positions 0, 3 and 8
        (path / f"{i:02d}.jpg").write_bytes(b"broken")
    assert read_numbers(read_chosen(path, lambda count: [count - 2, 1, 4])) == [7, 1, 4]
    with pytest.raises(VideoError, match=r"contains 01.jpg, which is not a JPEG, PNG, BMP or WebP image"):
        read_frames(path)


@pytest.mark.parametrize(
    "names",
    [
        ["00-00-58.jpg", "00-00-59.jpg", "00-01-00.jpg"],
        ["a_00_59_59.jpg", "a_01_00_00.jpg"],
        ["00.00.58.jpg", "00.00.59.jpg", "00.01.00.jpg"],
        [f"00-{i // 60:02d}-{i % 60:02d}.jpg" for i in range(30, 90)],
        ["img_9_5fps.jpg", "img_10_5fps.jpg", "img_11_5fps.jpg"],
        ["9_640x360.jpg", "10_640x360.jpg"],
        ["img_1_5fps.jpg"],
        ["0.5.jpg", "1.5.jpg", "2.5.jpg"],
    ],
)
def test_names_with_several_numbers(names, frame_directory, read_numbers):
    assert read_numbers(read_frames(frame_directory(*names))) == list(range(len(names)))


def test_missing_frame_in_names_with_several_numbers(frame_directory):
    with pytest.raises(VideoError, match="is missing frame 59, between 58 and 60"):
        read_frames(frame_directory("00-00-57.jpg", "00-00-58.jpg", "00-01-00.jpg"))


def test_entries_that_are_not_files_are_named(frame_directory):
    path = frame_directory("1.jpg", "2.jpg", "3.jpg")
    (path / "4.jpg").symlink_to("nowhere")
    with pytest.raises(VideoError, match=r"contains 4.jpg, which is a link to a file that does not exist: nowhere"):
        read_frames(path)
    (path / "4.jpg").unlink()
    (path / "4.jpg").mkdir()
    with pytest.raises(VideoError, match=r"contains 4.jpg, which is a directory, not an image"):
        read_frames(path)


TIMES = {
    "integers in decimals": ("{:.2f}", [i / 25 for i in range(30)]),
    "rounded": ("{:.3f}", [i / 30 for i in range(31)]),
    "coarse": ("{:.2f}", [i / 24 for i in range(30)]),
    "one decimal": ("{:.1f}", [1.7 + i / 10 for i in range(10)]),
    "variable width": ("{}", [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28]),
    "prefix": ("frame_{:.2f}", [8 + i / 2 for i in range(6)]),
    "milliseconds": ("{:.0f}", [1000 * i / 30 for i in range(40)]),
    "variable rate": ("{:.6f}", [1305031102.175304 + t for t in (0, 0.036, 0.068, 0.1, 0.143, 0.175)]),
}


@pytest.mark.parametrize("kind", TIMES)
def test_names_are_times(kind, frame_directory, read_numbers):
    pattern, times = TIMES[kind]
    path = frame_directory(*[pattern.format(time) + ".jpg" for time in times])
    assert read_numbers(read_frames(path)) == list(range(len(times)))


@pytest.mark.parametrize(
    ("pattern", "step", "lost"), [("{:.2f}", 0.04, "0.20"), ("{:.3f}", 1 / 30, "0.16."), ("{:.0f}", 33.4, "16[67]")]
)
def test_missing_time(pattern, step, lost, frame_directory):
    names = [pattern.format(step * i) + ".jpg" for i in range(12) if i != 5]
    with pytest.raises(VideoError, match=f"is missing frame {lost}, between"):
        read_frames(frame_directory(*names))


def test_truncated_dv():
    for flags, length in ((0x80, 144000), (0, 120000)):
        content = 2 * bytes([0x1F, 7, 0, flags]).ljust(length, b"\0")
        for size in (2 * length, length + 3, 2 * length - 1, 2 * length + 1):
            expected = complete_size((content + b"x")[:size], size, "dv", lambda: 0)
            assert (expected, expected > size) == (2 * length, size in (length + 3, 2 * length - 1))


TAILS = [b"", bytes(16), bytes(3000), bytes(range(256)) * 8, b"\xff\xd9" * 1000]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
def test_bytes_after_the_end_and_truncated_images(suffix, frame_directory, read_numbers):
    path = frame_directory(f"1.{suffix}", f"2.{suffix}")
    image = path / f"2.{suffix}"
    content = image.read_bytes()
    for tail in TAILS:
        image.write_bytes(content + tail)
        assert read_numbers(read_frames(path)) == [0, 1]
    for length in (len(content) // 2, len(content) - 40):
        for tail in TAILS[:2] if suffix in ("jpg", "png") else TAILS[:1]:
            image.write_bytes(content[:length] + tail)
            with pytest.raises(
                VideoError, match=rf"contains 2.{suffix}, which (is truncated|is damaged|cannot be read)"
            ):
                read_frames(path)


BROKEN = {
    "gap": (("1.jpg", "2.jpg", "4.jpg"), "is missing frame 3, between 2 and 4$"),
    "gaps": (("01.jpg", "02.jpg", "05.jpg", "07.jpg"), r"is missing frame 3, between 2 and 5 \(3 frames are missing"),
    "twice": (("00001.jpg", "00001.png"), "contains frame 1 twice: 00001.jpg and 00001.png"),
    "two series": (("flow_x_1.jpg", "flow_y_1.jpg"), "contains frame 1 twice: flow_x_1.jpg and flow_y_1.jpg"),
    "no number": (("1.jpg", "cover.jpg"), "contains cover.jpg, an image without a number at the end of its name"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_incomplete_series(name, frame_directory):
    names, message = BROKEN[name]
    with pytest.raises(VideoError, match=message) as caught:
        read_frames(frame_directory(*names))
    assert caught.value.path.name == "clip"


def test_broken_images(frame_directory, draw_number):
    path = frame_directory("1.jpg", "2.png", "3.jpg", "4.jpg")
    originals = {p.name: p.read_bytes() for p in path.iterdir()}
    jpeg, png = originals["1.jpg"], originals["2.png"]
    for name, content, message in (
        ("1.jpg", b"", r"contains 1.jpg, which is empty \(0 bytes\)"),
        ("1.jpg", b"text", "contains 1.jpg, which is not a JPEG, PNG, BMP or WebP image"),
        ("1.jpg", jpeg[: len(jpeg) // 2], "contains 1.jpg, which is truncated"),
        ("2.png", png[:-20], "contains 2.png, which is truncated"),
        ("2.png", png[:60] + png[-12:], "contains 2.png, which is truncated"),
    ):
        (path / name).write_bytes(content)
        with pytest.raises(VideoError, match=message):
            read_frames(path)
        (path / name).write_bytes(originals[name])
    save(path / "3.jpg", draw_number(3, 64, 64))
    with pytest.raises(VideoError, match="changes its frame size from 64×32 to 64×64"):
        read_frames(path)


def test_directory_without_frames(tmp_path):
    with pytest.raises(VideoError, match=r"is a directory without frames \(.jpg, .*, .webp\): it contains nothing"):
        read_frames(tmp_path)
    for name in "abcd":
        (tmp_path / f"{name}.mp4").touch()
    with pytest.raises(VideoError, match=r"it contains a.mp4, b.mp4, c.mp4, …"):
        read_frames(tmp_path)


def test_dataset_of_directories_and_files(frame_directory, tmp_path, numbered, read_numbers):
    path = frame_directory(*[f"{i}.jpg" for i in range(1, 9)])
    clips = (Clip(path, 0), Clip(numbered(tmp_path / "a.mp4", 8), 1))
    dataset = ClipDataset(ClipSet("mixed", "train", tmp_path, clips, ("a", "b")), 4, train=False)
    assert dataset.bad == {}
    assert [read_numbers(dataset[i]["video"]) for i in range(2)] == [segment_indices(8, 4).tolist()] * 2


@pytest.mark.parametrize(("short_side", "size"), [(None, (90, 160)), (45, (45, 80)), (100, (100, 178)), (1, (1, 2))])
def test_scaled_size(short_side, size):
    assert scaled_size(90, 160, short_side) == size
    assert scaled_size(160, 90, short_side) == size[::-1]
