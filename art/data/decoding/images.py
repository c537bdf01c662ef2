"""Image files: their codec, and where a complete image ends. Bytes that some cameras add after the end are ignored."""

from __future__ import annotations

import re

_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
#: In the compressed data of a JPEG image, 0xFF is followed by 0 or the number of a restart marker, or repeated.
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_SCAN, _END = 0xDA, 0xD9


def image_codec(content: bytes) -> str | None:
    """Return FFmpeg's decoder of an image file by its first bytes; None if it is none of JPEG, PNG, BMP and WebP."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    heads = {b"\xff\xd8\xff": "mjpeg", _PNG_HEAD: "png", b"BM": "bmp"}
    return next((codec for head, codec in heads.items() if content.startswith(head)), None)


def image_end(codec: str, content: bytes) -> int | None:
    """Return the number of bytes of the image at the start of ``content``; None if it is truncated."""
    if codec == "mjpeg":
        return _jpeg_end(content)
    if codec == "png":
        return _png_end(content)
    if codec == "webp":
        end = 8 + int.from_bytes(content[4:8], "little")
        return end if end <= len(content) else None
    return len(content)  # the decoder compares the size of a BMP image with its header


def _jpeg_end(content: bytes) -> int | None:
    position, in_scan = 2, False
    while True:
        marker = (_JPEG_MARKER.search if in_scan else _JPEG_MARKER.match)(content, position)
        if marker is None:
            return None
        kind, position = marker[1][0], marker.end()
        if kind == _END:
            return position
        position += int.from_bytes(content[position : position + 2], "big")  # a segment starts with its length
        in_scan = kind == _SCAN


def _png_end(content: bytes) -> int | None:
    position = len(_PNG_HEAD)
    while position < len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if end > len(content):
            return None
        if content[position + 4 : position + 8] == b"IEND":
            return end
        position = end
    return None
