import io
import logging
from types import SimpleNamespace

import av
import pytest
import torch

from art.data.decoding import interface as decoding
from art.data.decoding import pyav_decoder, torchcodec_decoder
from art.data.decoding.interface import DECODERS, find_decoder, scaled_size
from art.data.loading.dataset import ClipDataset, build_loader
from art.train.config import ConfigError, load_config


@pytest.fixture
def torchcodec(monkeypatch):
    """Lets torchcodec work or fail as a test wants it."""

    def pretend(problem):
        monkeypatch.setattr(torchcodec_decoder, "probe", lambda: problem)
        find_decoder.cache_clear()

    yield pretend
    find_decoder.cache_clear()


def test_pyav_is_what_is_taken_without_a_word():
    assert load_config(None).data.decoder == "pyav"
    assert find_decoder("pyav") is pyav_decoder.open_span


def test_torchcodec_that_does_not_work_is_an_error_that_says_why(torchcodec, clip_set):
    torchcodec("does not decode a probe (RuntimeError: no FFmpeg)")
    with pytest.raises(ImportError, match=r"torchcodec does not decode a probe \(RuntimeError: no FFmpeg\).*pyav"):
        find_decoder("torchcodec")
    with pytest.raises(ImportError, match=r"data\.decoder=torchcodec"):
        ClipDataset(clip_set, 4, train=True, decoder="torchcodec")


def test_auto_says_what_it_takes(torchcodec, caplog):
    with caplog.at_level(logging.INFO):
        torchcodec("is not installed")
        assert find_decoder("auto") is pyav_decoder.open_span
        assert "decoded with PyAV, because torchcodec is not installed" in caplog.text
        torchcodec(None)
        assert find_decoder("auto") is torchcodec_decoder.open_span
        assert "decoded with torchcodec" in caplog.text


def test_an_unknown_decoder(tmp_path):
    with pytest.raises(ValueError, match=r"decoder 'opencv' is unknown, expected one of pyav, torchcodec, auto"):
        find_decoder("opencv")
    with pytest.raises(ConfigError, match=r"data\.decoder: got 'opencv', expected one of pyav, torchcodec, auto"):
        load_config(None, ["data.decoder=opencv"])
    for name in DECODERS:
        assert load_config(None, [f"data.decoder={name}"]).data.decoder == name


def raising(error):
    def fail(*args, **options):
        raise error

    return fail


def blank(*args, **options):
    frames = SimpleNamespace(data=torch.zeros(8, 3, 64, 64))
    return SimpleNamespace(get_frames_at=lambda indices: frames)


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        (raising(OSError("libavutil.so.59\n: not found")), "cannot be imported (OSError: libavutil.so.59 : not found)"),
        (raising(ModuleNotFoundError("No module")), "cannot be imported (ModuleNotFoundError: No module)"),
        (
            lambda name: SimpleNamespace(VideoDecoder=raising(RuntimeError("no"))),
            "does not decode a probe (Run",
        ),
        (lambda name: SimpleNamespace(VideoDecoder=blank), "decodes a probe wrongly"),
    ],
)
def test_a_probe_finds_what_is_wrong(load, problem, monkeypatch):
    monkeypatch.setattr(torchcodec_decoder, "importlib", SimpleNamespace(import_module=load))
    assert torchcodec_decoder.probe.__wrapped__().startswith(problem)


def test_a_probe_is_a_whole_video():
    with av.open(io.BytesIO(torchcodec_decoder._probe_video())) as container:
        means = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert means == pytest.approx([20 + 25 * i for i in range(8)], abs=8)


def test_another_frame_than_the_asked_one_is_an_error(tmp_path, numbered):
    with torchcodec_decoder.open_span(numbered(tmp_path / "a.mp4", 6), None, None) as span:
        span._check_times([1, 3], [1 / 12, 3 / 12])
        with pytest.raises(Exception, match=r"gives the frame at 0\.333 s for that at 0\.250 s: use data.decoder=pyav"):
            span._check_times([1, 3], [1 / 12, 4 / 12])


def test_a_data_set_reads_with_each_decoder(decoder, clip_set, read_numbers):
    dataset = ClipDataset(clip_set, 5, train=True, decoder=decoder, seed=3)
    expected = ClipDataset(clip_set, 5, train=True, seed=3)
    cached = ClipDataset(clip_set, 5, train=True, decoder=decoder, seed=3, cache=True)
    for index in (0, 7):
        numbers = read_numbers(dataset[index]["video"])
        assert numbers == read_numbers(expected[index]["video"]) == read_numbers(cached[index]["video"])


def test_workers_compute_in_one_thread_each(clip_set, monkeypatch):
    """Decoding and PyTorch together take one core a worker, however many the machine has."""
    threads = []

    class Watched(ClipDataset):
        def stack(self, samples):
            batch = super().stack(samples)
            return batch | {"threads": torch.tensor([torch.get_num_threads()])}

    dataset = Watched(clip_set, 4, train=False)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        loader = build_loader(dataset, 5, workers=2)
        threads = [int(batch["threads"]) for batch in loader]
        loader.close()
    finally:
        torch.set_num_threads(before)
    assert threads == [1, 1]


@pytest.mark.parametrize(("short_side", "size"), [(None, (90, 160)), (45, (45, 80)), (100, (100, 178)), (1, (1, 2))])
def test_scaled_sizes(short_side, size):
    assert scaled_size(90, 160, short_side) == size
    assert scaled_size(160, 90, short_side) == size[::-1]
    with pytest.raises(ValueError, match="short_side must be at least 1 pixel, got 0"):
        decoding.scaled_size(90, 160, 0)
