"""Drawings of the losses of tracklets and of the semantics bank."""

from __future__ import annotations

from collections.abc import Callable

from art.eval.report.style import GRID, INK, MUTED
from art.model.options import ARTOptions
from docs.drawings.card import BLUE, GREEN, ORANGE, PALE, PINK, SMALL, Card

PAPER = ARTOptions()
_ROWS = (ORANGE, BLUE, GREEN)


def levels() -> Card:
    """The three levels of the contrastive loss."""
    card = Card(
        395,
        "Three levels: responses of one frame repel, those of a tracklet in adjacent frames attract, tracklets repel",
    )
    card.title("Three contrastive terms", "schematic; a row is a tracklet, a column a frame; no labels are used")
    attract = f"a tracklet's responses in\nadjacent frames attract,\nup to a cosine of λ = {PAPER.margin:g}"
    panels = (
        ("spatial", "responses of one\nframe repel each other"),
        ("temporal", attract),
        ("tracklet", "whole tracklets, pooled\nover time, repel"),
    )
    for number, (heading, below) in enumerate(panels):
        x = 24.0 + 234 * number
        card.text(x, 92, heading, bold=True)
        card.text(x, 350, below, size=SMALL, color=INK)
        _grid(card, x, number)
    return card


def _grid(card: Card, x: float, panel: int) -> None:
    """Three tracklets over four frames, with the pairs that one level compares."""
    step, top = 56.0, 132.0
    xs = [x + 14 + step * t for t in range(4)]
    ys = [top + 64 * k for k in range(3)]
    if panel == 0:
        card.box(xs[1] - 20, ys[0] - 22, 56, ys[2] - ys[0] + 44, radius=10, edge=MUTED, face=PALE[MUTED])
    if panel == 2:
        for y, color in zip(ys, _ROWS, strict=True):
            card.box(xs[0] - 18, y - 18, xs[3] - xs[0] + 36, 36, radius=10, edge=color, face=PALE[color])
    for y, color in zip(ys, _ROWS, strict=True):
        for t, at in enumerate(xs):
            pale = (panel == 0 and t != 1) or panel == 2
            card.circle(at, y, 9, face=PALE[color] if pale else color, edge=color)
            if panel == 1 and t < 3:
                card.arrow((at + 11, y), (at + step - 11, y), inward=True, color=INK, line=1.4)
    if panel == 0:
        for k in range(2):
            card.arrow((xs[1], ys[k] + 12), (xs[1], ys[k + 1] - 12), both=True)
        card.arrow((xs[1] + 11, ys[0]), (xs[1] + 11, ys[2]), both=True, bend=-0.25)
    if panel == 2:
        for k in range(2):
            card.arrow((xs[1] + step / 2, ys[k] + 19), (xs[1] + step / 2, ys[k + 1] - 19), both=True)


def margin() -> Card:
    """The loss over the cosine."""
    card = Card(
        380, "The loss over the cosine: the temporal term falls to 0 at λ, the repelling terms grow with the cosine"
    )
    card.title("Loss of a pair over its cosine", "dashed: the options")
    lam = PAPER.margin
    at = _axes(card, 60.0, "attracting: temporal", 0.0, 1.6)
    _line(card, [at(-1, lam + 1), at(lam, 0), at(1, 0)], BLUE)
    _line(card, [at(lam, 0), at(1, 1 - lam)], PINK, dashed=True)
    x, y = at(lam, 0)
    card.line([x, x], [y, y + 8], color=INK)
    card.text(x, y + 20, f"λ = {lam:g}", size=SMALL, at="center")
    card.text(122, 140, "max(0, λ − cos)", size=SMALL, color=BLUE)
    absolute = '"absolute":\n|λ − cos|'
    card.text(330, at(1, 1 - lam)[1] - 34, absolute, size=SMALL, color=PINK, at="right")

    at = _axes(card, 410.0, "repelling: spatial, tracklet", -1.0, 1.0)
    _line(card, [at(-1, -1), at(1, 1)], BLUE)
    _line(card, [at(-1, 0), at(0, 0)], PINK, dashed=True)
    card.text(575, 222, "cos", size=SMALL, color=BLUE)
    card.text(410, at(-1, 0)[1] - 26, "clamp_repulsion:\nmax(0, cos)", size=SMALL, color=PINK)
    return card


def _axes(
    card: Card, left: float, heading: str, low: float, high: float
) -> Callable[[float, float], tuple[float, float]]:
    """Draw the axes of a panel and return the transform from (cosine, loss) to pixels."""
    width, top, height = 270.0, 100.0, 200.0

    def at(cosine: float, loss: float) -> tuple[float, float]:
        return left + (cosine + 1) / 2 * width, top + height * (1 - (loss - low) / (high - low))

    card.text(left, 84, heading, bold=True)
    card.line([left, left + width], [at(0, 0)[1]] * 2, color=GRID)
    card.line([at(0, 0)[0]] * 2, [top, top + height], color=GRID)
    for cosine, label in ((-1, "−1"), (0, "0"), (1, "1")):
        card.note(at(cosine, 0)[0], top + height + 20, label, at="center")
    card.note(left + width / 2, top + height + 44, "cosine", at="center")
    return at


def _line(card: Card, points: list[tuple[float, float]], color: str, *, dashed: bool = False) -> None:
    card.line([x for x, _ in points], [y for _, y in points], color=color, line=2.6, dashed=dashed)


def bank() -> Card:
    """The bank, its agent, and how fast the bank follows."""
    card = Card(520, "The losses train an agent, a copy of the bank; after each step the bank moves toward it")
    card.title(
        "The semantics bank and its agent",
        "top: schematic; bottom: fraction of a change of the agent that the bank has followed",
    )
    for x, heading, color, below in (
        (40.0, "bank S", ORANGE, "no gradient;\nprovides the queries"),
        (470.0, "agent S_a", BLUE, "trained by L_sema,\nused only there"),
    ):
        card.text(x, 90, heading, bold=True)
        for shift in (12, 6, 0):
            card.grid(x + shift, 108 + shift, 4, 6, 26, 18, face=PALE[color], edge=color)
        card.text(x, 220, below, size=SMALL)
    card.arrow((462, 150), (222, 150), line=2.4)
    card.text(342, 128, "S ← μ S + (1 − μ) S_a", at="center", size=14)
    card.note(342, 174, "after each step", at="center")
    caption = "L_sema classifies x_cls and\nclass prototypes by the\nnearest prompt of a class"
    card.text(236, 222, caption, size=SMALL)
    card.arrow((436, 204), (464, 190), color=BLUE)
    _followed(card, 110.0, 290.0, 540.0, 160.0, 3000)
    return card


def _followed(card: Card, left: float, top: float, width: float, height: float, steps: int) -> None:
    """The fraction of a change of the agent that the bank has followed after n steps: 1 − μ^n."""
    for fraction in (0, 0.5, 1):
        y = top + height * (1 - fraction)
        card.line([left, left + width], [y, y], color=GRID)
        card.note(left - 10, y, f"{100 * fraction:.0f} %", at="right")
    for step in range(0, steps + 1, 500):
        card.note(left + width * step / steps, top + height + 20, f"{step:,}", at="center")
    card.note(left + width / 2, top + height + 44, "optimizer steps after a change of the agent", at="center")
    for momentum, color, source in ((PAPER.bank_momentum, ORANGE, "our reading"), (0.99, GREEN, "the motion recipe")):
        points = [steps * i / 120 for i in range(121)]
        ys = [top + height * momentum**step for step in points]
        card.line([left + width * step / steps for step in points], ys, color=color, line=2.6)
        at = 1100 if momentum > 0.99 else 330
        x, y = left + width * at / steps + 8, top + height * momentum**at + 14
        card.text(x, y, f"μ = {momentum:g} ({source})", size=SMALL)
