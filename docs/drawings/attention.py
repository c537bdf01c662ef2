"""Drawings of the region attention kernels, with the sizes of their configuration tables."""

from __future__ import annotations

from unittest import mock

import torch

from art.eval.report.style import INK, MUTED
from art_kernels._core import launch
from art_kernels._core.launch import DeviceSpec, LaunchConfig, choose_splits
from art_kernels.region_attention.configs import backward_config, forward_config
from benchmarks.attention_providers import SHAPES, AttentionShape
from docs.drawings.card import BLUE, GREEN, ORANGE, PALE, PINK, SMALL, Card

#: The device of the drawings: 227 KiB of shared memory per program, and the number of multiprocessors.
DEVICE, NUM_SMS = DeviceSpec("nvidia", 227 * 1024), 132


def _rows(shape: AttentionShape) -> int:
    return shape.queries * shape.num_heads


def _forward(shape: AttentionShape, dtype: torch.dtype) -> LaunchConfig:
    return forward_config(
        dtype, _rows(shape), shape.region_dim, DEVICE, position=False, normalize=shape.norm_regions
    )  # fmt: skip


def _backward(shape: AttentionShape, dtype: torch.dtype) -> LaunchConfig:
    tiles, _ = backward_config(
        dtype, _rows(shape), shape.region_dim, DEVICE, position=False, normalize=shape.norm_regions
    )  # fmt: skip
    return tiles


def legend(card: Card, y: float, *, kept: str = "kept over the loop") -> None:
    """The meaning of the colors."""
    words = ("read from memory", kept, "computed per tile", "written")
    for x, color, text in zip((20, 185, 350, 505), (GREEN, ORANGE, PINK, BLUE), words, strict=True):
        card.box(x, y - 7, 14, 14, face=PALE[color], edge=color)
        card.text(x + 21, y, text, size=SMALL, color=MUTED)


def _chunks(card: Card, x: float, y: float, width: float, height: float, count: int, color: str) -> None:
    card.grid(x, y, 1, count, width / count, height, face=PALE[color], edge=color)


def _tile_loop(
    card: Card,
    x: float,
    y: float,
    width: float,
    *,
    regions: int,
    tiles: LaunchConfig,
    chunks: int,
    most: int,
    row: float,
) -> tuple[float, float]:
    """Draw the tiles of the regions, the third one current; return its middle and the end of the tiles."""
    count = -(-regions // tiles.block_n)
    shown = min(count, most)
    for number in range(shown):
        top = y + row * number
        if number == shown - 2 and count > most:
            card.text(x + width / 2, top + row / 2 - 4, f"… {count} tiles …", size=SMALL, at="center")
            continue
        now = number == 2
        _chunks(card, x, top, width, row - 4, chunks, GREEN)
        if now:
            card.box(x - 3, top - 3, width + 6, row + 2, face="none", edge=INK, line=2.2)
        left = regions - tiles.block_n * (count - 1)
        if number == shown - 1 and left < tiles.block_n:
            filled = left / tiles.block_n
            card.box(x, top + (row - 4) * filled, width, (row - 4) * (1 - filled), face="#ffffff", edge=GREEN, line=1,
                     hatch="////")  # fmt: skip
    card.arrow((x - 14, y + 4), (x - 14, y + row * shown - 8))
    return y + row * 2.5 - 2, y + row * shown


def forward() -> Card:
    """One program loops over the regions of a frame."""
    shape = SHAPES["art-256"]
    tiles, n, c = _forward(shape, torch.bfloat16), shape.regions, shape.region_dim
    chunks, rows = tiles.chunks(c), tiles.block_m
    card = Card(465, f"Forward: a program keeps {rows} query rows and loops over tiles of {tiles.block_n} regions")
    folded = f"{shape.num_heads} heads × {shape.queries} queries = {_rows(shape)} rows"
    card.title("Forward: one program, one frame", f"{shape.name}, bfloat16: N = {n}, C = {c}, {folded}")
    legend(card, 440)
    card.text(20, 92, f"rows q [{rows} × {c}]", bold=True)
    _chunks(card, 20, 108, 150, 46, chunks, ORANGE)
    card.note(20, 180, f"{chunks} chunks of {tiles.block_c}\nchannels, loaded once")
    card.text(225, 92, f"regions X [{n} × {c}]", bold=True)
    middle, end = _tile_loop(card, 225, 108, 190, regions=n, tiles=tiles, chunks=chunks, most=7, row=40)
    card.note(225, end + 10, f"tiles of {tiles.block_n}; the last is masked")
    card.text(478, 92, f"scores [{rows} × {tiles.block_n}]", bold=True)
    card.grid(478, 108, 4, 8, 14, 12, face=PALE[PINK], edge=PINK)
    card.note(600, 132, "q xᵀ: the tile\nas keys")
    card.text(478, 196, f"max, sum [{rows}]", bold=True)
    card.grid(478, 212, 4, 1, 14, 12, face=PALE[ORANGE], edge=ORANGE)
    card.grid(500, 212, 4, 1, 14, 12, face=PALE[ORANGE], edge=ORANGE)
    card.note(530, 236, "online softmax:\nrescale earlier sums")
    card.text(478, 300, f"output [{rows} × {c}]", bold=True)
    _chunks(card, 478, 316, 190, 46, chunks, ORANGE)
    card.note(478, 390, "+ weights · x: the tile as values;\nwritten once, at the end")
    card.arrow((172, 131), (222, 131), dashed=True)
    card.arrow((422, middle - 8), (472, 134), bend=-0.1)
    card.arrow((422, middle + 8), (472, 336), bend=0.1)
    return card


def chunks() -> Card:
    """Channels in chunks: scores are a sum over them, outputs are not."""
    shape = SHAPES["art-768"]
    tiles, c = _forward(shape, torch.bfloat16), shape.region_dim
    count = tiles.chunks(c)
    card = Card(400, f"{count} chunks of {tiles.block_c} channels: scores are their sum, outputs are separate")
    sizes = f"C = {c} is {count} chunks of {tiles.block_c}; {tiles.num_warps} warps per program"
    card.title("Channels in chunks", f"{shape.name}, bfloat16: {sizes}")
    step = 420 / count
    card.text(20, 92, "scores: one sum over the chunks", bold=True)
    for number in range(count):
        x = 20 + step * number
        card.box(x, 112, step - 22, 24, face=PALE[ORANGE], edge=ORANGE)
        card.box(x, 142, step - 22, 24, face=PALE[GREEN], edge=GREEN)
        if number < count - 1:
            card.text(x + step - 11, 139, "+", at="center")
    card.text(20, 186, "q chunk · x chunkᵀ", size=SMALL)
    card.arrow((440, 139), (500, 139))
    card.grid(508, 112, 4, 4, 14, 14, face=PALE[PINK], edge=PINK)
    card.note(578, 139, f"[{tiles.block_m} × {tiles.block_n}], float32")
    card.text(20, 236, "output: separate chunks", bold=True)
    card.grid(20, 262, 4, 4, 14, 14, face=PALE[PINK], edge=PINK)
    card.text(20, 336, "weights", size=SMALL)
    card.text(98, 290, "×", size=18, at="center")
    step = 540 / count
    for number in range(count):
        x = 124 + step * number
        card.box(x, 254, step - 22, 24, face=PALE[GREEN], edge=GREEN)
        card.arrow((x + (step - 22) / 2, 280), (x + (step - 22) / 2, 298))
        card.box(x, 300, step - 22, 24, face=PALE[ORANGE], edge=ORANGE)
    caption = f"{count} accumulators [{tiles.block_m} × {tiles.block_c}] in float32, none as wide as C"
    card.text(124, 342, caption, size=SMALL)
    legend(card, 376)
    return card


def splits() -> Card:
    """Few frames: several programs share the regions, and their results are combined."""
    shape = SHAPES["uniformerv2-l"]
    tiles, n = _forward(shape, torch.bfloat16), shape.regions
    programs = shape.frames * -(-_rows(shape) // tiles.block_m) * tiles.channel_splits
    with mock.patch.object(launch, "num_sms", return_value=NUM_SMS):
        count, each = choose_splits.__wrapped__(n, programs, tiles.block_n, torch.device("cpu"))
    card = Card(375, f"{n} regions in {count} splits of {each}, each with its softmax; a second kernel combines them")
    sizes = f"{shape.frames} clips of N = {n} tokens, on a device with {NUM_SMS} multiprocessors"
    card.title("Few frames: splits, combined by a second kernel", f"{shape.name}, bfloat16: {sizes}")
    each_is = f"{count} splits of {each}, each {each // tiles.block_n} tiles of {tiles.block_n}"
    card.text(20, 92, f"regions of one clip: {each_is}", bold=True)
    width = 680 / count
    for number in range(count):
        card.box(20 + width * number, 112, width, 34, face=PALE[GREEN], edge=GREEN, line=0.9)
    shown = (0, 1, 2, count - 1)
    xs = (20, 165, 310, 540)
    for number, x in zip(shown, xs, strict=True):
        card.box(x, 196, 130, 62, face=PALE[BLUE], edge=BLUE, radius=6)
        card.text(x + 65, 212, f"split {number + 1}", size=SMALL, bold=True, at="center")
        card.text(x + 65, 238, f"max h, sum s,\no [{_rows(shape)} × {shape.region_dim}]", size=11.5, at="center")
        card.arrow((20 + width * (number + 0.5), 148), (x + 65, 193))
        card.arrow((x + 65, 260), (360, 296))
    card.text(490, 226, "…", size=22, at="center")
    combined = "o = Σ o_i s_i exp(h_i − h) / Σ s_i exp(h_i − h)"
    card.box(190, 298, 340, 36, combined, face=PALE[BLUE], edge=BLUE, radius=6, size=SMALL)
    kept = "results of splits are float32"
    card.note(20, 354, f"{programs} programs without splits, {programs * count} with them; {kept}")
    return card


def backward() -> Card:
    """One tile of the backward pass."""
    shape = SHAPES["art-256"]
    tiles, n, c = _backward(shape, torch.bfloat16), shape.regions, shape.region_dim
    count, rows = tiles.chunks(c), tiles.block_m
    card = Card(
        500, "Backward: the weights are recomputed from a tile of regions, and the gradient of that tile is written"
    )
    sizes = f"tiles of {tiles.block_n} regions, {count} chunks of {tiles.block_c} channels"
    card.title("Backward: recompute the weights, write each gradient once", f"{shape.name}, bfloat16: {sizes}")
    card.text(20, 92, "regions X", bold=True)
    middle, end = _tile_loop(card, 34, 108, 120, regions=n, tiles=tiles, chunks=count, most=7, row=38)
    card.note(20, end + 14, f"{-(-n // tiles.block_n)} tiles")
    card.text(215, 92, f"rows q and dO [{rows} × {c}]", bold=True)
    for number in range(2):
        _chunks(card, 215 + 125 * number, 108, 115, 26, count, GREEN)
    card.text(215, 170, f"for this tile, [{rows} × {tiles.block_n}] each", bold=True)
    for number, (name, text) in enumerate((("p", "exp(q xᵀ scale − h) / s"), ("ds", "p (dO xᵀ − delta) scale"))):
        y = 190 + 68 * number
        card.grid(215, y, 4, 4, 13, 13, face=PALE[PINK], edge=PINK)
        card.text(278, y + 14, name, bold=True)
        card.note(278, y + 36, text)
    card.arrow((160, middle), (208, 220))
    card.text(500, 92, "gradient dX", bold=True)
    for number in range(7):
        top = 108 + 38 * number
        if number == 5:
            card.text(580, top + 15, "…", at="center")
            continue
        face = BLUE if number < 3 else MUTED
        _chunks(card, 500, top, 160, 34, count, face)
        if number == 2:
            card.box(497, top - 3, 166, 40, face="none", edge=INK, line=2.2)
    card.note(500, end + 24, "dsᵀ q + pᵀ dO, chunk by chunk;\neach tile is written once")
    card.arrow((450, 240), (494, 205))
    card.text(215, 372, f"gradient dq [{rows} × {c}]", bold=True)
    _chunks(card, 215, 388, 190, 30, count, ORANGE)
    card.note(215, 438, "+ ds · x, tile by tile; written at the end")
    card.arrow((240, 322), (240, 362))
    legend(card, 474)
    return card


def parts() -> Card:
    """Channel splits: several programs share the channels of a result that exceeds the registers of one."""
    shape = SHAPES["art-768"]
    tiles, c = _backward(shape, torch.float32), shape.region_dim
    count = tiles.chunks(c)
    own = count // tiles.channel_splits
    row = 26
    height = 150 + row * tiles.channel_splits + 46
    card = Card(
        height,
        f"{tiles.channel_splits} programs compute scores over all {count} chunks; each sums {own} of the gradient",
    )
    sizes = f"{count} chunks of {tiles.block_c} channels, {tiles.channel_splits} channel splits of {own}"
    card.title(
        "Channel splits: programs that share the channels of a result", f"{shape.name}, float32, backward: {sizes}"
    )
    left, width = 110.0, 580 / count
    card.text(left, 96, f"chunks of the regions, 1 to {count}", size=SMALL)
    for part in range(tiles.channel_splits):
        y = 118 + row * part
        card.text(20, y + 9, f"split {part + 1}", size=SMALL)
        for number in range(count):
            mine = part * own <= number < (part + 1) * own
            face, edge = (BLUE, BLUE) if mine else (PALE[GREEN], GREEN)
            card.box(left + width * number, y, width, row - 7, face=face, edge=edge, line=0.8)
    y = 118 + row * tiles.channel_splits + 24
    words = ("read for the scores", "read; dq and dX are summed and written")
    for x, face, edge, text in zip((20, 230), (PALE[GREEN], BLUE), (GREEN, BLUE), words, strict=True):
        card.box(x, y - 7, 14, 14, face=face, edge=edge)
        card.note(x + 21, y, text)
    again = f"The regions are read {tiles.channel_splits} times, from the caches if they fit"
    in_bf16 = _backward(shape, torch.bfloat16).channel_splits
    card.text(20, y + 32, f"{again}; channel splits in bfloat16: {in_bf16}.", size=SMALL)
    return card
