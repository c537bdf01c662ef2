"""Drawings of the stages of ART: frames, regions, responses, tracklets, prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence

from art.eval.report.style import GRID, INK, MUTED
from art.model.options import ARTOptions
from docs.drawings.card import BLUE, GREEN, ORANGE, PALE, PINK, SMALL, TEXT, Card

PAPER = ARTOptions()
#: One color per tracklet.
COLORS = (ORANGE, BLUE)
#: Tint of the cells of a 6 × 6 grid to which a query attends: an arm, and a knee.
_ARM = {(2, 0): 0.5, (2, 1): 1.0, (1, 1): 0.35}
_KNEE = {(4, 3): 1.0, (4, 2): 0.35, (5, 3): 0.45}


def person(
    card: Card, x: float, y: float, size: float, *, arm: float = 0.0, knee: float = 0.0, line: float = 2.0
) -> None:
    """A stick figure in a frame of ``size``, with the right arm held out and the left knee lifted by 0..1."""
    unit, middle = size / 100, x + size / 2
    card.circle(middle, y + 18 * unit, 8 * unit, face=INK, edge=INK)
    card.line([middle, middle], [y + 26 * unit, y + 58 * unit], line=line)
    hand = (middle - (10 + 28 * arm) * unit, y + (58 - 21 * arm) * unit)
    card.line([middle, hand[0]], [y + 33 * unit, hand[1]], line=line)
    card.line([middle, middle + 11 * unit], [y + 33 * unit, y + 58 * unit], line=line)
    card.line([middle, middle - 8 * unit, middle - 10 * unit], [y + 58 * unit, y + 75 * unit, y + 94 * unit], line=line)
    joint = (middle + (6 + 12 * knee) * unit, y + (75 - 10 * knee) * unit)
    card.line([middle, joint[0], middle + 12 * unit], [y + 58 * unit, joint[1], y + (94 - 9 * knee) * unit], line=line)


def frame(card: Card, x: float, y: float, size: float, *, arm: float = 0.0, knee: float = 0.0) -> None:
    """A frame with a person."""
    card.box(x, y, size, size, face=PALE[MUTED], edge=MUTED, line=1)
    person(card, x, y, size, arm=arm, knee=knee, line=1.6 if size < 80 else 2.4)


def chips(card: Card, x: float, y: float, colors: Sequence[str], *, cells: int = 4, size: float = 11) -> None:
    """One vector per color, stacked."""
    for row, color in enumerate(colors):
        card.grid(x, y + row * (size + 5), 1, cells, size, size, face=PALE[color], edge=color)


_LEFTS, _BOX, _TOP, _STRIP, _BOTTOM = (20.0, 260.0, 500.0), 200.0, 75.0, 262.0, 385.0


def pipeline() -> Card:
    """All stages, in the order of the paper."""
    card = Card(
        545,
        "ART: frames become tokens, class names become queries, responses become tracklets for one head",
    )
    card.title("The stages of ART", "schematic; sizes of the paper")
    _from_clip_to_tokens(card)
    _class_texts(card)
    _from_regions_to_prediction(card)
    return card


def _stages(card: Card, top: float, height: float, headings: Sequence[str]) -> None:
    for x, heading in zip(_LEFTS, headings, strict=True):
        card.box(x, top, _BOX, height, radius=8, edge=MUTED)
        card.text(x + 12, top + 20, heading, bold=True)


def _from_clip_to_tokens(card: Card) -> None:
    (clip, backbone, enhancement), top = _LEFTS, _TOP
    _stages(card, top, 145, ("1  the clip", "2  backbone", "3  enhancement"))
    for number in range(3):
        frame(card, clip + 16 + 59 * number, top + 44, 52, arm=(0.0, 1.0, 0.4)[number])
    card.note(clip + 100, top + 122, f"T = {PAPER.num_frames} frames", at="center")
    for number in range(3):
        card.grid(backbone + 16 + 45 * number, top + 46, 4, 4, 10, 10, face=PALE[GREEN], edge=GREEN)
    card.grid(backbone + 156, top + 61, 1, 1, 28, 11, face=GREEN, edge=GREEN)
    card.text(backbone + 170, top + 86, "x_cls", size=SMALL, at="center")
    card.note(backbone + 100, top + 122, "tokens X: 196 per frame", at="center")
    card.grid(enhancement + 30, top + 42, 4, 4, 14, 14, face=PALE[GREEN], edge=GREEN)
    chips(card, enhancement + 118, top + 54, COLORS)
    card.arrow((enhancement + 90, top + 70), (enhancement + 114, top + 70), both=True)
    card.note(enhancement + 100, top + 122, "tokens and texts attend", at="center")
    card.arrow((clip + _BOX, top + 70), (backbone, top + 70))
    card.arrow((backbone + _BOX, top + 70), (enhancement, top + 70))


def _class_texts(card: Card) -> None:
    names, bank, nearest = _LEFTS
    for x, text in (
        (names, "class names\nin 16 prompts each"),
        (bank, "semantics bank S\none vector per prompt"),
        (nearest, f"the {PAPER.num_tracklets} classes\nnearest to x_cls"),
    ):
        card.box(x, _STRIP, _BOX, 66, text, radius=8, edge=MUTED, face=PALE[ORANGE], size=14)
    card.arrow((names + _BOX, _STRIP + 33), (bank, _STRIP + 33))
    card.arrow((bank + _BOX, _STRIP + 33), (nearest, _STRIP + 33))
    card.arrow((bank + _BOX - 10, _TOP + 145), (nearest + 12, _STRIP), color=GREEN)
    card.text(bank + 140, _STRIP - 22, "x_cls", size=SMALL, color=GREEN)
    card.arrow((nearest + 100, _STRIP), (nearest + 100, _TOP + 145), color=ORANGE)
    card.arrow((nearest + 100, _STRIP + 66), (nearest + 100, _BOTTOM), color=ORANGE)


def _from_regions_to_prediction(card: Card) -> None:
    (prediction, followed, activation), top = _LEFTS, _BOTTOM
    _stages(card, top, 140, ("6  prediction", "5  tracklets", "4  region activation"))
    frame(card, activation + 22, top + 42, 62, arm=1.0)
    chips(card, activation + 122, top + 54, COLORS)
    for row, color in enumerate(COLORS):
        there = (activation + 40 + 24 * row, top + 68 + 14 * row)
        card.arrow((activation + 118, top + 60 + 16 * row), there, color=color, bend=0.2)
    card.note(activation + 100, top + 120, f"{PAPER.num_tracklets} queries per frame", at="center")
    for row, color in enumerate(COLORS):
        y = top + 56 + 32 * row
        card.line([followed + 24, followed + 176], [y, y], color=color)
        for column, weight in enumerate((0.4, 0.7, 1.0, 0.8, 0.4)):
            card.circle(followed + 24 + 38 * column, y, 4 + 6 * weight, face=color, edge=color)
    card.note(followed + 100, top + 120, "linked and weighted", at="center")
    card.grid(prediction + 22, top + 52, 1, 1, 56, 16, face=GREEN, edge=GREEN)
    for row, color in enumerate(COLORS):
        card.grid(prediction + 78 + 50 * row, top + 52, 1, 1, 50, 16, face=color, edge=color)
    card.text(prediction + 100, top + 86, "[x_cls, Tr 1, Tr 2]", size=SMALL, at="center")
    card.note(prediction + 100, top + 120, f"one linear head, d = {PAPER.latent_dim}", at="center")
    card.arrow((activation, top + 70), (followed + _BOX, top + 70))
    card.arrow((followed, top + 70), (prediction + _BOX, top + 70))


def asking() -> Card:
    """Two queries attend to one frame."""
    card = Card(470, "Two queries, class texts plus learned prompts, each compute a weighted sum of a frame's regions")
    card.title("Querying a frame with class names", "schematic: maps of a trained model may differ (see below)")
    names = (("walk, right arm held out", 0.41), ("walk, left knee lifted", 0.37), ("walk", 0.22), ("jump", 0.08))
    card.text(20, 86, "a  selected classes", bold=True)
    card.note(20, 108, "cosine of x_cls with the bank")
    for row, (name, cosine) in enumerate(names):
        y = 128 + 42 * row
        color = COLORS[row] if row < 2 else MUTED
        card.text(20, y + 4, name, size=SMALL)
        card.box(20, y + 15, 380 * cosine, 11, face=color, edge=color)
    card.text(20, 325, "b  queries", bold=True)
    for row, color in enumerate(COLORS):
        y = 350 + 34 * row
        chips(card, 20, y, [color], cells=5, size=14)
        card.text(102, y + 7, "+", at="center")
        card.grid(114, y, 1, 5, 14, 14, face=PALE[PINK], edge=PINK)
        card.text(192, y + 7, f"= query {row + 1}", size=SMALL)
    card.note(20, 430, "text of the class, after enhancement,\nplus a prompt learned for each frame")

    card.text(300, 86, "c  attention: softmax over regions", bold=True)
    for number, (color, cells) in enumerate(zip(COLORS, (_ARM, _KNEE), strict=True)):
        x = 300.0 + 205 * number
        _response_map(card, x, 112, color, cells)
        card.text(x, 310, f"query {number + 1}", size=SMALL)
        card.arrow((x + 90, 298), (x + 90, 347), color=color)
        card.grid(x + 45, 350, 1, 6, 15, 15, face=PALE[color], edge=color)
    card.text(300, 397, "d  responses", bold=True)
    caption = "weighted sums of the regions (after the value\nprojection): K vectors per frame instead of N tokens"
    card.note(300, 430, caption)
    return card


def _response_map(card: Card, x: float, y: float, color: str, cells: dict[tuple[int, int], float]) -> None:
    side = 180
    card.box(x, y, side, side, face=PALE[MUTED], edge=MUTED)
    for (row, column), weight in cells.items():
        tint = _mix(PALE[color], color, weight)
        card.box(x + column * 30, y + row * 30, 30, 30, face=tint, edge=tint)
    for step in range(1, 6):
        card.line([x + 30 * step] * 2, [y, y + side], color=GRID, line=0.8)
        card.line([x, x + side], [y + 30 * step] * 2, color=GRID, line=0.8)
    person(card, x, y, side, arm=1.0, knee=1.0, line=3)


def _mix(low: str, high: str, weight: float) -> str:
    parts = [(int(low[i : i + 2], 16), int(high[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * weight):02x}" for a, b in parts)


def tracklets() -> Card:
    """Tracklets by index, and by similarity if queries swap regions."""
    card = Card(400, "Tracklets by query index, as in the paper, and by similarity, if two queries swap regions")
    card.title(
        "Linking responses over the frames", "schematic; a line is a tracklet, a fill is the region of a response"
    )
    swaps, frames = 3, 6
    for row, (heading, below) in enumerate(
        (('linking = "index"', "the paper"), ('linking = "optimal"', "beyond the paper"))
    ):
        top = 95 + 150 * row
        card.text(20, top + 22, heading, size=TEXT, bold=True)
        card.note(20, top + 46, below)
        ys = (top + 14, top + 74)
        for t in range(frames - 1):
            x = 260 + 80 * t
            for k, color in enumerate(COLORS):
                here = k if row == 0 or t < swaps else 1 - k
                there = k if row == 0 or t + 1 < swaps else 1 - k
                card.line([x, x + 80], [ys[here], ys[there]], color=color, line=4)
        for t in range(frames):
            for query in range(2):
                region = query if t < swaps else 1 - query
                card.circle(260 + 80 * t, ys[query], 15, face=(PALE[GREEN], PALE[PINK])[region], line=1.4)
                card.text(260 + 80 * t, ys[query], ("arm", "leg")[region], size=11.5, at="center")
        if row == 0:
            for query in range(2):
                card.text(236, ys[query], f"query {query + 1}", size=SMALL, at="right", color=COLORS[query])
    for t in range(frames):
        card.note(260 + 80 * t, 348, f"frame {t + 1}", at="center")
    card.text(
        20,
        378,
        "After frame 3 the queries swap regions: by index, each tracklet contains half of each.",
        size=SMALL,
    )
    return card


def saliency() -> Card:
    """From cosines with the texts to frame weights, at two temperatures."""
    cosines = ((0.52, 0.53, 0.55, 0.60, 0.61, 0.58, 0.53, 0.51), (0.40, 0.40, 0.41, 0.43, 0.44, 0.44, 0.41, 0.40))
    sharp, soft = PAPER.temperature, 0.1
    card = Card(
        430,
        "Cosines of a tracklet with two class texts, softmax over time, mean over texts: the frame weights",
    )
    card.title(
        "Frame weights in a tracklet",
        "schematic cosines of a tracklet with its two class texts; weights computed from them",
    )
    left, step = 200.0, 62.0
    card.text(20, 120, "cosine of each\nresponse with\nboth texts", size=SMALL)
    for color, values in zip((GREEN, PINK), cosines, strict=True):
        xs = [left + 25 + step * t for t in range(8)]
        ys = [158 - (value - 0.38) * 330 for value in values]
        card.line(xs, ys, color=color, line=2.4)
        for x, y in zip(xs, ys, strict=True):
            card.circle(x, y, 4, face=color, edge=color)
    card.line([left, left + 8 * step], [166, 166], color=GRID)
    for number, (tau, source) in enumerate(((sharp, "our reading"), (soft, "the motion recipe"))):
        base = 270 + 115 * number
        card.text(20, base - 40, f"weights with\nτ = {tau:g}\n({source})", size=SMALL)
        weights = _saliency(cosines, tau)
        for t, weight in enumerate(weights):
            height = 90 * weight / 0.62
            card.box(left + 6 + step * t, base - height, 38, height, face=ORANGE, edge=ORANGE)
            if weight >= 0.005:
                card.text(left + 25 + step * t, base - height - 10, f"{weight:.2f}", size=SMALL, at="center")
        card.line([left, left + 8 * step], [base, base], color=GRID)
    for t in range(8):
        card.note(left + 25 + step * t, 402, f"{t + 1}", at="center")
    card.note(left - 14, 402, "frame", at="right")
    return card


def _saliency(cosines: Sequence[Sequence[float]], temperature: float) -> list[float]:
    """The softmax over time of each row, averaged over the rows."""
    rows = []
    for values in cosines:
        exponentials = [math.exp((value - max(values)) / temperature) for value in values]
        rows.append([value / sum(exponentials) for value in exponentials])
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]
