import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from blob_model import FRAMES, NAMES, BlobModel, blob_path, blob_video, read_blob

from art.data.datasets.base import Clip, ClipSet
from art.data.shards import write_shards
from art.eval.metrics import compute_metrics
from art.eval.report import SampleClip, collect_pairs, collect_samples, measure_localization, write_report
from art.eval.report.report import _format_duration, wilson_interval
from art.model.pretrained import Query
from art.train.batches import open_split
from art.train.loop import train

pytestmark = pytest.mark.slow

HISTORY = [
    {"event": "epoch", "epoch": e, "step": 10 * e, "top1/test": 0.1 * e, "loss/total": 3 / e, "loss/video": 1 / e}
    for e in range(1, 6)
]


class Page(HTMLParser):
    """Elements, URLs, and text of a page; fails if elements are not closed in order."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.count, self.urls, self.words, self.ids = [], {}, [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.urls += [v for k, v in attributes if k in ("src", "href", "srcset", "xlink:href", "action", "data")]
        self.ids += [v for k, v in attributes if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())

    @property
    def text(self):
        return " ".join(word for word in self.words if word)


def evaluation_of(labels, predicted, class_names):
    probabilities = np.full((len(labels), len(class_names)), 0.1, dtype=np.float32)
    probabilities[np.arange(len(labels)), predicted] = 0.9
    return compute_metrics(probabilities, np.array(labels), np.arange(len(labels)), class_names)


def sample(label, predicted, classes, *, tracklets=2, joints=None, path="some/where/clip.mp4"):
    rng = np.random.default_rng(label)
    probabilities = np.full(classes, 0.2 / classes)
    probabilities[predicted] += 0.8
    maps = {}
    if tracklets:
        maps["maps"] = rng.random((FRAMES, tracklets, 4, 4))
        maps["saliency"] = rng.dirichlet(np.ones(FRAMES), tracklets).T
        maps["queries"] = tuple(Query(f"class {k}", k) for k in range(tracklets))
    frames = blob_video(label % 3).permute(0, 2, 3, 1).numpy()
    return SampleClip(Path(path), frames, label, probabilities, joints=joints, **maps)


def assert_self_contained(text):
    page = Page(text)
    assert all(url.startswith(("data:image/", "#")) for url in page.urls)
    assert not re.search(r"https?://", text), "no URL at all, including those of namespaces"
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    assert not {"script", "link", "iframe", "object"} & set(page.count)
    assert len(page.ids) == len(set(page.ids))
    references = {url[1:] for url in page.urls if url.startswith("#")}
    references |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert references <= set(page.ids), "references within figures resolve"
    return page


def test_report_contains_the_numbers_of_a_run(tmp_path, blob_clips, blob_evaluation):
    model = BlobModel()
    localization = measure_localization(
        model,
        blob_clips,
        lambda clip: np.stack([blob_path(clip.label), np.full((FRAMES, 2), 0.875)], axis=1),
        joint_names=("hand", "foot"),
        defining=("hand", "hand", None),
        bones=[("hand", "foot")],
        read=read_blob,
    )
    chosen = collect_samples(
        model, blob_clips, blob_evaluation, right=2, wrong=1, limb=lambda c: blob_path(c.label), read=read_blob
    )
    path = write_report(
        tmp_path / "run",
        title="blobs & <bold>",
        history=HISTORY,
        evaluation=blob_evaluation,
        class_names=NAMES,
        samples=chosen,
        localization=localization,
        summary={"backbone": "tiny", "lr": 0.0123456},
    )
    assert path == tmp_path / "run" / "report.html"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"], "no temporary file remains"
    text = path.read_text(encoding="utf-8")
    page = assert_self_contained(text)
    assert "blobs & <bold>" in page.text and "0.01235" in page.text
    assert "63.6 %" in page.text, "top-1: 7 of 11"
    assert "66.7 %" in page.text, "mean over classes: 1, 1, 0"
    assert "100.0 % " in page.text, "top-5 of three classes"
    low, high = wilson_interval(7 / 11, 11)
    assert f"{100 * low:.1f} to {100 * high:.1f}" in page.text
    assert "4 of 4" in page.text, "clips of class 2 predicted as class 0"
    assert "50.0 % 100.0 % 100.0 %" in page.text, "the tracklets: mean, best, any"
    chance = localization.overall.random_region
    assert f"{100 * chance.single:.1f} %" in page.text and f"{100 * chance.best:.1f} %" in page.text
    assert page.text.count(", query “") == 3 * 2
    assert page.count["img"] == 3 * (1 + 2 * FRAMES), "each clip: an overview, and each tracklet's frames"
    assert page.count["svg"] == 3, "two charts and the confusion matrix"


def test_equal_arguments_produce_equal_bytes(tmp_path):
    evaluation = evaluation_of([0, 1, 2], [0, 1, 1], NAMES)
    texts = [
        write_report(
            tmp_path / name,
            title="t",
            history=HISTORY,
            evaluation=evaluation,
            class_names=NAMES,
            samples=[sample(0, 0, 3)],
        ).read_bytes()
        for name in ("a", "b")
    ]
    assert texts[0] == texts[1]


def written(directory, evaluation, class_names, samples, **more):
    path = write_report(
        directory, title="t", history=[], evaluation=evaluation, class_names=class_names, samples=samples, **more
    )
    return assert_self_contained(path.read_text(encoding="utf-8"))


def test_correct_and_wrong_clips_are_in_two_columns(tmp_path):
    evaluation = evaluation_of([0, 1, 2], [0, 1, 1], NAMES)
    path = write_report(
        tmp_path,
        title="t",
        history=[],
        evaluation=evaluation,
        class_names=NAMES,
        samples=[sample(2, 1, 3), sample(0, 0, 3), sample(1, 1, 3)],
    )
    text = path.read_text(encoding="utf-8")
    correct, wrong = text.index('class="side correct"'), text.index('class="side wrong"')
    places = [m.start() for m in re.finditer('<article class="card clip', text)]
    assert [correct < place < wrong for place in places] == [True, True, False]
    kinds = re.findall('<article class="card clip (correct|wrong)"', text)
    assert kinds == ["correct", "correct", "wrong"]


def test_no_wrong_predictions(tmp_path):
    page = written(tmp_path, evaluation_of([0, 1, 2], [0, 1, 2], NAMES), NAMES, [sample(0, 0, 3)])
    assert "No clip with a wrong prediction." in page.text
    assert "No clip was misclassified." in page.text
    assert "95 % interval 43.9 to 100.0" in page.text


def test_no_samples_and_no_history(tmp_path):
    page = written(tmp_path, evaluation_of([0, 1, 2], [1, 1, 2], NAMES), NAMES, [])
    assert "training" not in page.ids and "clips" not in page.ids
    assert "confusion" in page.ids and "classes" in page.ids


def test_one_tracklet(tmp_path):
    page = written(tmp_path, evaluation_of([0], [1], NAMES), NAMES, [sample(0, 1, 3, tracklets=1)])
    assert page.text.count(", query “") == 1 and "Tracklet 2" not in page.text


def test_backbone_shows_frames_only(tmp_path):
    page = written(tmp_path, evaluation_of([0], [1], NAMES), NAMES, [sample(0, 1, 3, tracklets=0)])
    assert ", query “" not in page.text and "Sample clips" in page.text and "Tint" not in page.text
    assert page.count["img"] == FRAMES


def test_many_classes_with_special_characters(tmp_path):
    names = [f"(VT) <{i}> round-off & flic-flac, stretched salto backward with {i} “turns” off" for i in range(130)]
    labels = list(range(120)) * 2  # the last ten classes have no clips
    predicted = [(i + 1) % 130 if i % 3 == 0 else i for i in labels]
    chosen = [sample(129, 3, 130, joints=np.full((FRAMES, 2), 0.5))]
    page = written(tmp_path, evaluation_of(labels, predicted, names), names, chosen)
    assert page.text.count("no clips") == 10
    assert names[129] in page.text
    assert "rank 130" in page.text, "the true class is listed even if it is the least probable"
    assert "White diamond" in page.text


def test_size_of_a_large_report(tmp_path):
    rng = np.random.default_rng(0)
    groups = [f"set {i // 20}" for i in range(288)]
    names = [f"({group}) round-off, flic-flac on, stretched salto backward, {i}" for i, group in enumerate(groups)]
    labels = rng.integers(288, size=6000)
    predicted = np.where(rng.random(6000) < 0.2, rng.integers(288, size=6000), labels)
    probabilities = np.eye(288, dtype=np.float32)[predicted]
    evaluation = compute_metrics(probabilities, labels, np.arange(6000), names, groups=groups)
    clips = tuple(Clip(Path(f"/clips/{i}.mp4"), int(label)) for i, label in enumerate(labels))
    clip_set = ClipSet("gym", "val", Path("/clips"), clips, tuple(names))
    noise = torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pairs = collect_pairs(clip_set, evaluation, lambda clip: noise)
    page = written(tmp_path, evaluation, names, [], pairs=pairs)
    assert page.count["img"] == sum(len(pair.mistaken) + 2 for pair in pairs) > 36 * 3
    assert (tmp_path / "report.html").stat().st_size < 4 * 2**20, "noise is the worst case for JPEG"
    assert "First 500 of" in page.text
    assert "set 14" in page.text and {"groups", "pairs", "pair-show-across"} <= set(page.ids)


def test_accuracy_per_group_and_mistakes_per_class(tmp_path):
    evaluation = compute_metrics(
        np.eye(3, dtype=np.float32)[[0, 1, 1, 1]], np.array([0, 0, 1, 2]), np.arange(4), NAMES, groups=("x", "x", "y")
    )
    page = written(tmp_path, evaluation, NAMES, [])
    assert "Accuracy within each group" in page.text
    assert "x 2 3 66.7 % 75.0 %" in page.text, "two of three clips; half of one class and all of the other"
    assert "y 1 1 0.0 % 0.0 %" in page.text
    assert f"mistaken for this class: {NAMES[0]} 1 ; {NAMES[2]} 1" in page.text
    assert page.text.count("predicted as:") == 2
    plain = written(tmp_path, evaluation_of([0, 1], [0, 1], NAMES), NAMES, [])
    assert "groups" not in plain.ids and plain.count.get("details", 0) == 0


def test_header_has_readable_labels_and_units(tmp_path):
    facts = {"seconds": 7405.2, "step_seconds": 0.2852, "views": 3, "data": "走る\udce9, test", "epochs": None}
    page = written(tmp_path, evaluation_of([0], [0], NAMES), NAMES, [], summary=facts)
    expected = "training time 2 h 3 min median time per step 285 ms views 3 data 走る\\udce9, test"
    assert expected in page.text and "seconds" not in page.text and "epochs" not in page.text
    assert [_format_duration(seconds) for seconds in (0.01, 59.96, 61)] == ["10 ms", "60 s", "1 min 1 s"]


def test_invalid_arguments_write_nothing(tmp_path):
    evaluation = evaluation_of([0, 1], [0, 1], NAMES)
    with pytest.raises(ValueError, match=r"2 class names, expected \[Y, Y\]"):
        written(tmp_path, evaluation, NAMES[:2], [])
    with pytest.raises(ValueError, match="5 probabilities"):
        written(tmp_path, evaluation, NAMES, [sample(0, 0, 5)])
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_keeps_the_previous_report(tmp_path, monkeypatch):
    evaluation = evaluation_of([0], [0], NAMES)
    written(tmp_path, evaluation, NAMES, [])
    previous = (tmp_path / "report.html").read_bytes()

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        written(tmp_path, evaluation, NAMES, [sample(0, 0, 3)])
    assert (tmp_path / "report.html").read_bytes() == previous
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_wilson_interval():
    # 81 of 263: the worked example of Newcombe (1998), 0.2553 to 0.3662.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError, match="at least one clip"):
        wilson_interval(0.5, 0)


def test_clips_in_shards_have_samples_but_no_pairs(configured, clips, tmp_path):
    for split in ("train", "test"):
        write_shards(open_split(configured(tmp_path).data, split), tmp_path / "shards")
    pages = {}
    for name, root in (("csv", clips), ("shards", tmp_path / "shards")):
        overrides = [f"data.name={name}", f"data.root={root}", "report=true", "optim.epochs=1", "kind=art"]
        result = train(configured(tmp_path / name, *overrides))
        pages[name] = (tmp_path / name / "report.html").read_text()
        assert result.evaluation.correct_top1 < 6, "there are mistakes to show"
    assert all(", query “" in page and "predicted as" in page for page in pages.values())
    assert 'class="strip wrong"' in pages["csv"] and 'alt="3 frames of test_' in pages["csv"]
    assert 'class="strip' not in pages["shards"]
