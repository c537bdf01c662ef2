import io
import logging
from types import SimpleNamespace

import av
import pytest
import torch

from art.data.dataset import ClipDataset
from art.data.decoding import pyav, torchcodec
from art.data.decoding.video import DECODERS, find_decoder
from art.train.config import ConfigError, load_config


@pytest.fixture
def probe_result(monkeypatch):
    """Sets the result of the torchcodec probe."""

    def set_result(problem):
        monkeypatch.setattr(torchcodec, "probe", lambda: problem)
        find_decoder.cache_clear()

    yield set_result
    find_decoder.cache_clear()


def test_unusable_torchcodec(probe_result, clip_set):
    probe_result("does not decode a test video (RuntimeError: no FFmpeg)")
    with pytest.raises(ImportError, match=r"torchcodec does not decode a test video \(RuntimeError: no FFmpeg\).*pyav"):
        find_decoder("torchcodec")
    with pytest.raises(ImportError, match=r"data\.decoder=torchcodec"):
        ClipDataset(clip_set, 4, train=True, decoder="torchcodec")


def test_auto_logs_its_choice(probe_result, caplog):
    with caplog.at_level(logging.INFO):
        probe_result("is not installed")
        assert find_decoder("auto") is pyav.open_span
        assert "decoded with PyAV, because torchcodec is not installed" in caplog.text
        probe_result(None)
        assert find_decoder("auto") is find_decoder("torchcodec") is torchcodec.open_span
        assert "decoded with torchcodec" in caplog.text


def test_decoder_names():
    assert load_config(None).data.decoder == "pyav"
    assert find_decoder("pyav") is pyav.open_span
    assert [load_config(None, [f"data.decoder={name}"]).data.decoder for name in DECODERS] == [*DECODERS]
    with pytest.raises(ValueError, match=r"decoder 'opencv' is unknown, expected one of pyav, torchcodec, auto"):
        find_decoder("opencv")
    with pytest.raises(ConfigError, match=r"data\.decoder: got 'opencv', expected one of pyav, torchcodec, auto"):
        load_config(None, ["data.decoder=opencv"])


def raising(error):
    def fail(*args, **options):
        raise error

    return fail


def black_frames(*args, **options):
    frames = SimpleNamespace(data=torch.zeros(8, 3, 64, 64))
    return SimpleNamespace(get_frames_at=lambda indices: frames)


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        (raising(OSError("libavutil.so.59\n: not found")), "cannot be imported (OSError: libavutil.so.59 : not found)"),
        (raising(ModuleNotFoundError("No module")), "cannot be imported (ModuleNotFoundError: No module)"),
        (lambda name: SimpleNamespace(VideoDecoder=raising(RuntimeError("no"))), "does not decode a test video (Run"),
        (lambda name: SimpleNamespace(VideoDecoder=black_frames), "decodes a test video incorrectly"),
    ],
)
def test_probe_reports_the_problem(load, problem, monkeypatch):
    monkeypatch.setattr(torchcodec, "importlib", SimpleNamespace(import_module=load))
    assert torchcodec.probe.__wrapped__().startswith(problem)


def test_probe_video():
    with av.open(io.BytesIO(torchcodec._probe_video())) as container:
        means = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert means == pytest.approx([20 + 25 * i for i in range(8)], abs=8)


def test_frame_at_the_wrong_time_is_an_error(tmp_path, numbered):
    with torchcodec.open_span(numbered(tmp_path / "a.mp4", 6), None, None) as span:
        span._check_times([1, 3], [1 / 12, 3 / 12])
        message = r"returns the frame at 0\.333 s instead of the one at 0\.250 s: use data.decoder=pyav"
        with pytest.raises(Exception, match=message):
            span._check_times([1, 3], [1 / 12, 4 / 12])
