"""Drawings of the pooling, contrast and linking kernels, with the sizes of their configuration tables."""

from __future__ import annotations

import torch

from art.eval.report.style import INK, MUTED
from art_kernels.tracklet_contrast.configs import find_config as contrast_config
from art_kernels.tracklet_nce.configs import find_config as nce_config
from art_kernels.tracklet_pooling.configs import find_config as pooling_config
from benchmarks.contrast_providers import SHAPES
from docs.drawings import csrc
from docs.drawings.attention import DEVICE, legend
from docs.drawings.card import BLUE, GREEN, ORANGE, PALE, PINK, SMALL, Card

_T, _J = 16, 2
_DTYPE = torch.bfloat16


def pooling() -> Card:
    """One tracklet of one video, forward."""
    channels = SHAPES["paper"].sizes[-1]
    tiles = pooling_config("forward", _DTYPE, _T, _J, channels, DEVICE)
    card = Card(455, "Pooling: a program has one tracklet; scores with the texts, softmax over time, weighted sum")
    sizes = f"bfloat16: T = {_T} frames, J = {_J} texts, C = {channels}; a tile is {tiles.block_m} frames"
    card.title("Pooling: one tracklet per program", sizes)
    card.text(20, 96, f"responses r [{_T} × {channels}]", bold=True)
    card.grid(20, 112, _T, tiles.chunks(channels), 170 / tiles.chunks(channels), 13, face=PALE[GREEN], edge=GREEN)
    card.arrow((206, 116), (206, 316))
    card.note(216, 306, "time")
    card.text(20, 346, f"texts s [{_J} × {channels}]", bold=True)
    card.grid(20, 362, _J, tiles.chunks(channels), 170 / tiles.chunks(channels), 13, face=PALE[GREEN], edge=GREEN)
    card.text(262, 96, f"scores [{_T} × {tiles.block_n}]", bold=True)
    card.grid(262, 112, _T, tiles.block_n, 9, 13, face=PALE[MUTED], edge=MUTED)
    card.grid(262, 112, _T, _J, 9, 13, face=PALE[PINK], edge=PINK)
    card.note(262, 352, "cos(r, s) / τ;\nthe rest is padding")
    card.text(470, 96, "saliency w", bold=True)
    card.grid(495, 112, _T, 1, 18, 13, face=PALE[BLUE], edge=BLUE)
    card.note(440, 352, "softmax along each\ncolumn, mean over J")
    card.text(575, 96, "aggregated", bold=True)
    card.grid(585, 200, 1, tiles.chunks(channels), 115 / tiles.chunks(channels), 13, face=PALE[BLUE], edge=BLUE)
    card.note(585, 236, "Σ_t w_t r_t")
    card.arrow((225, 216), (256, 216))
    card.arrow((412, 216), (488, 216))
    card.arrow((520, 206), (580, 206))
    long = pooling_config("forward", _DTYPE, 1 << 20, _J, channels, DEVICE)
    back = pooling_config("backward", _DTYPE, 1 << 20, _J, channels, DEVICE)
    loops = "two loops over tiles, for max and sum, then for weights"
    card.text(20, 404, f"Above {long.block_m} frames (backward {back.block_m}): {loops}.", size=SMALL)
    legend(card, 435, kept="padding")
    card.box(185, 428, 14, 14, face=PALE[MUTED], edge=MUTED)
    return card


def contrast() -> Card:
    """Frames of a video as the rows of one block."""
    _, _, count, channels = SHAPES["paper"].sizes
    tiles = contrast_config(_DTYPE, count, DEVICE)
    rows, frames = tiles.block_m, tiles.block_m // count
    card = Card(
        460,
        f"Contrast: {rows} rows are {frames} frames; in their products, the pairs of one frame are the spatial term",
    )
    sizes = f"bfloat16: K = {count} tracklets, so {frames} frames are {rows} rows of {channels} channels"
    card.title("Contrast: the rows of a block are whole frames", sizes)
    card.text(20, 92, f"rows [{rows} × {channels}]", bold=True)
    cell, top = 15.0, 110.0
    for frame in range(frames):
        y = top + frame * count * cell
        card.grid(52, y, count, 2, 62, cell, face=PALE[GREEN], edge=GREEN)
        card.note(44, y + count * cell / 2, f"t+{frame}" if frame else "t", at="right")
    card.text(220, 92, f"products [{rows} × {rows}]", bold=True)
    card.grid(220, top, rows, rows, cell, cell, face=PALE[MUTED], edge="#d0d4db")
    for frame in range(frames):
        for i in range(count):
            for j in range(count):
                if i != j:
                    x, y = 220 + (frame * count + j) * cell, top + (frame * count + i) * cell
                    card.box(x, y, cell, cell, face=PINK, edge=PINK)
    card.arrow((182, top + 120), (214, top + 120))
    right = 490
    card.text(right, 92, "spatial", bold=True)
    card.note(right, 122, "pairs of one frame (pink):\nsum of cosines")
    card.text(right, 166, "temporal", bold=True)
    card.note(right, 206, "rows of the frames before and\nafter are read too: a dot\nproduct per row, no matrix")
    card.text(right, 258, "gradients", bold=True)
    card.grid(right, 274, 1, 4, 40, 20, face=PALE[BLUE], edge=BLUE)
    card.grid(right, 300, 1, 4, 40, 20, face=PALE[BLUE], edge=BLUE)
    card.note(right, 352, "of each sum, written now and\nweighted in the backward pass")
    twice = "read for the products, and again for the gradients, from the caches"
    card.text(20, 396, f"Chunks of {tiles.max_block_c} channels: {twice}.", size=SMALL)
    legend(card, 434, kept="not used")
    card.box(185, 427, 14, 14, face=PALE[MUTED], edge=MUTED)
    return card


def nce() -> Card:
    """Two loops over the matrix of pairs, which is never stored."""
    (_, channels) = SHAPES["nce-4k"].sizes
    ahead, back = (nce_config(kernel, _DTYPE, channels, DEVICE) for kernel in ("forward", "backward"))
    card = Card(
        440,
        "Contrast across a batch: a program keeps a block of rows and loops over tiles of columns; no matrix is stored",
    )
    blocks = (
        f"blocks of {ahead.block_m} rows, tiles of {ahead.block_n} columns; backward {back.block_m} and {back.block_n}"
    )
    card.title("Contrast across a batch: tiles of a matrix that is never stored", f"bfloat16, C = {channels}: {blocks}")
    panels = (
        ("rows are anchors", "log-sum-exp and mean positive of each\nanchor; backward, its gradient"),
        ("rows are candidates", "the same kernel, transposed: for the\nsymmetric loss, and their gradient"),
    )
    for number, (heading, below) in enumerate(panels):
        x, y, cell = 70.0 + 350 * number, 128.0, 25.0
        card.text(x, 92, heading, bold=True)
        card.grid(x, y, 8, 8, cell, cell, face=PALE[MUTED], edge="#d0d4db")
        for done in range(3):
            at = (x + cell * done, y + 2 * cell) if number == 0 else (x + 2 * cell, y + cell * done)
            size = (cell, 2 * cell) if number == 0 else (2 * cell, cell)
            card.box(*at, *size, face=PINK if done == 2 else PALE[PINK], edge=PINK)
        if number == 0:
            card.box(x - 18, y + 2 * cell, 12, 2 * cell, face=PALE[ORANGE], edge=ORANGE)
            card.arrow((x + 3 * cell + 4, y + 3 * cell), (x + 8 * cell - 4, y + 3 * cell))
        else:
            card.box(x + 2 * cell, y - 18, 2 * cell, 12, face=PALE[ORANGE], edge=ORANGE)
            card.arrow((x + 3 * cell, y + 3 * cell + 4), (x + 3 * cell, y + 8 * cell - 4))
        card.note(x + 4 * cell, y + 8 * cell + 14, "candidates", at="center")
        card.text(x - 30, y + 4 * cell, "anchors", size=SMALL, color=MUTED, at="center", turned=True)
        card.note(x, 375, below)
    words = ("kept by a program", "current tile", "processed tiles")
    for x, color, text in zip((20, 200, 360), (PALE[ORANGE], PINK, PALE[PINK]), words, strict=True):
        card.box(x, 408, 14, 14, face=color, edge=ORANGE if x == 20 else PINK)
        card.text(x + 21, 415, text, size=SMALL, color=MUTED)
    return card


def lanes() -> Card:
    """Problems per warp."""
    groups = [(2, csrc.enumerated_rows(), 1)]
    for most, width in csrc.lanes_of_rows().items():
        groups.append((groups[-1][1] + 1, most, width))
    card = Card(
        400,
        "Assignment: one problem per thread up to four rows, per group of lanes up to 32, then several warps",
    )
    card.title(
        "Assignment: problems per warp",
        "a warp is 32 lanes (threads that run together); one color per problem",
    )
    colors = (ORANGE, BLUE, GREEN, PINK)
    y = 92.0
    for least, most, width in groups:
        card.text(20, y + 12, f"{least} to {most} rows", bold=True)
        for lane in range(32):
            color = colors[lane // width % 4]
            card.box(170 + 16.5 * lane, y, 15, 24, face=PALE[color], edge=color)
        problems = 32 // width
        caption = f"{width} lanes each, with one column and one row per lane"
        if width == 1:
            caption = "one problem per thread, costs and matching in registers"
        card.note(170, y + 40, f"{problems} problem{'s' if problems > 1 else ''} per warp; {caption}")
        y += 62
    most = csrc.most_rows()
    card.text(20, y + 12, f"{groups[-1][1] + 1} to {most} rows", bold=True)
    for warp in range(8):
        color = ORANGE if warp < 2 else MUTED
        card.box(170 + 66 * warp, y, 60, 24, "warp" if warp < 2 else "", face=PALE[color], edge=color, size=11.5)
    card.note(170, y + 40, f"2 to {most // 32} warps per problem, one column and row per thread; one barrier per step")
    return card


def linking() -> Card:
    """Two frames per block: cosines, then the matching, in the same shared memory."""
    linker = csrc.linkers()[-2]
    side = linker.rows // linker.square
    card = Card(430, "Linking: cosines of two frames from tiles of channels, their matching, then slots through time")
    least, own = csrc.linkers()[-3].most + 1, f"{linker.square} × {linker.square}"
    sizes = f"{least} to {linker.most} responses per frame: {side * side} threads, each with {own} products"
    card.title("Linking: a pair of frames per block", sizes)
    card.text(20, 92, "1  tiles of channels", bold=True)
    units = csrc.tile_units()
    for number, name in enumerate(("frame t", "frame t + 1")):
        card.text(20, 116 + 104 * number, name, size=SMALL)
        card.grid(20, 128 + 104 * number, 8, units, 20, 8, face=PALE[GREEN], edge=GREEN)
    card.note(20, 330, f"{units} units of 16 bytes of each\nresponse (8 of {linker.rows} drawn)")
    card.text(240, 92, "2  all products, then costs", bold=True)
    card.grid(240, 110, side, side, 20, 20, face=PALE[PINK], edge=PINK)
    card.box(240, 110, 20, 20, face=PINK, edge=INK)
    card.note(240, 312, f"a thread's {own} products are in\nregisters; the cosines then\nreplace the tile")
    card.text(490, 92, "3  the matching", bold=True)
    for i, j in enumerate((1, 0, 3, 2)):
        y = 126 + 38 * i
        card.line([520, 640], [y, 126 + 38 * j], color=ORANGE, line=2.4)
    for i in range(4):
        y = 126 + 38 * i
        card.circle(520, y, 8, face=PALE[GREEN], edge=GREEN)
        card.circle(640, y, 8, face=PALE[GREEN], edge=GREEN)
    card.note(490, 312, "the first warp: shortest\naugmenting paths, duals and\nmatching in registers")
    card.arrow((186, 210), (232, 210))
    card.arrow((406, 190), (490, 190))
    caption = "4  a second kernel composes the matchings of a video frame by frame: order, similarity, ids"
    card.box(20, 366, 680, 44, caption, face=PALE[BLUE], edge=BLUE, radius=6, size=12.5)
    return card
