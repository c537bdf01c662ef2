"""Containers: which ones are opened, and how many bytes a file must have according to the sizes stored in it."""

from __future__ import annotations

import io
import itertools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from art.data.decoding.frames import Unreadable

#: FFmpeg's demuxers of files that contain all of their data. The others are scripts, playlists, file name patterns and
#: devices, which make FFmpeg read other files or open connections, and text formats that it renders.
_DEMUXERS = """
    3dostr 4xm aac ac3 aiff amr amv anm apng apv asf au av1 avi avs2 avs3 bfi bink bmp_pipe bmv c93 caf cavsvideo
    cdxl cine dhav dirac dnxhd dpx_pipe dts dv dxa ea eac3 evc exr_pipe film_cpk flac flic flv frm gdv gem_pipe gif
    gif_pipe gxf h261 h263 h264 hdr_pipe hevc hnm idcin iff ifv ingenient ipmovie ipu ivf ivr j2k_pipe jpeg_pipe
    jpegls_pipe jpegxl_anim jpegxl_pipe jv kux lmlm4 lvf lxf m4v matroska mgsts mjpeg mjpeg_2000 mm moflex mov mp3
    mpeg mpegts mpegvideo mtv mv mvi mxf mxg nsv nut nuv obu ogg pam_pipe paf pbm_pipe pcx_pipe pgm_pipe pgmyuv_pipe
    png_pipe pmp ppm_pipe psd_pipe psxstr pva qoi_pipe r3d rl2 rm roq rpl sgi_pipe siff simbiosis_imx smk smush
    sunrast_pipe swf thp tiertexseq tiff_pipe tmv truehd tta ty usm vc1 vc1test vivo vmd vpk vvc w64 wav wc3movie
    webp webp_pipe wtv wv xa xbm_pipe xmv xwd_pipe yop yuv4mpegpipe
"""

#: Options of FFmpeg for every file that is opened.
OPEN_OPTIONS = {"format_whitelist": ",".join(_DEMUXERS.split()), "protocol_whitelist": "file"}

_NOT_A_CONTAINER = (
    "is not a video file but {}; only files that contain their own frames are read: expected a container such as MP4, "
    "MKV, WebM, AVI or TS"
)
_SCRIPTS = ((b"ffconcat", "an ffconcat script"), (b"#extm3u", "an M3U playlist"), (b"v=0", "an SDP description"))
_HEAD_BYTES = 2**16
_SHORT_BYTES = 64 * 192
_TS_PACKETS = ((188, 0), (192, 4))  # length, and position of the first byte, 0x47; M2TS has a time before it

_Read = Callable[[int, int], bytes]  # position and number of bytes; fewer at the end of the file


def open_bytes(file: Path | bytes) -> BinaryIO:
    """Open a file given as a path or as its content."""
    return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")


def check_not_script(file: Path | bytes) -> None:
    """Raise Unreadable if the content of a file is a script or a playlist, regardless of its name.

    PyAV opens only the demuxers above. torchcodec opens any, so that this check is its only protection.
    """
    with open_bytes(file) as opened:
        head = opened.read(512)
        if b"\0" not in head:  # text, or one of few binary formats
            head += opened.read(_HEAD_BYTES)
    text = head.split(b"\0", 1)[0].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = next((kind for start, kind in _SCRIPTS if text.startswith(start)), None)
    if kind is None and b"<mpd" in text:
        kind = "a DASH manifest"
    if kind is not None:
        raise Unreadable(_NOT_A_CONTAINER.format(kind + ", which names other files"))


def not_allowed() -> Unreadable:
    """Return the error for a format that FFmpeg recognizes but that is not one of the allowed demuxers."""
    return Unreadable(_NOT_A_CONTAINER.format("a script, a pattern of file names, or a text format"))


def short_stream(file: Path | bytes) -> str | None:
    """Return FFmpeg's name of the demuxer for an MPEG-TS file of few packets, which FFmpeg may take for a raw stream;
    None for all other files, whose format it recognizes."""
    with open_bytes(file) as opened:
        head = opened.read(_SHORT_BYTES + 1)
    if not 3 * 192 < len(head) <= _SHORT_BYTES:
        return None
    is_ts = any(set(head[start : len(head) // length * length : length]) == {0x47} for length, start in _TS_PACKETS)
    return "mpegts" if is_ts else None


def complete_size(file: Path | bytes, size: int, container: str, packets_end: Callable[[], int]) -> int | None:
    """Return the number of bytes that a file must have so that none of its packets is missing.

    Args:
        file: path or content.
        size: actual number of bytes.
        container: FFmpeg's name of the demuxer.
        packets_end: returns the end of the last packet in the index of an MP4 file; 0 if there is no index.

    Returns:
        At most ``size`` if the file is complete; None if the container stores no sizes, or they are not filled in, as
        in files that were written to a pipe.
    """
    names = container.split(",")
    with open_bytes(file) as opened:

        def read(position: int, count: int) -> bytes:
            opened.seek(position)
            return opened.read(count)

        if "mov" in names:
            return _mp4_size(read, size, packets_end)
        find = next((find for name, find in _FINDERS.items() if name in names), None)
        return None if find is None else find(read, size)


_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"uuid", b"sidx", b"meta", b"pdin")


def _mp4_size(read: _Read, size: int, packets_end: Callable[[], int]) -> int | None:
    """Return for MP4 the end of the last box, or of the fragments that a segment index (sidx) lists."""
    position, fragments_end, kind, fragmented = 0, 0, b"", False
    while position + 8 <= size:
        head = read(position, 16)
        length, kind, first = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, first = int.from_bytes(head[8:], "big"), 16
        if kind == b"mdat" and (length == 0 or position + length > size):  # some writers reserve space at its end
            return max(packets_end() or position + length, fragments_end)
        if length < first or (kind not in _BOXES and position + length > size):  # other bytes after the last box
            break
        if kind == b"sidx":
            fragments_end = position + length + _referenced_bytes(read(position + first, min(length, 2**20)))
        position += length
        if kind == b"moof":
            fragmented = True
    begun = read(position, 8)[4:] if position < size < position + 8 else b""
    if kind == b"moof" or (fragmented and begun and any(box.startswith(begun) for box in (*_BOXES, b"mfra"))):
        return position + 8  # the header of the next box is incomplete
    return max(position if position <= size or kind in (b"moov", b"moof") else size, fragments_end)


def _referenced_bytes(sidx: bytes) -> int:
    wide = 8 if sidx[:1] == b"\x01" else 4
    start = 12 + 2 * wide
    offset, count = int.from_bytes(sidx[12 + wide : start], "big"), int.from_bytes(sidx[start + 2 : start + 4], "big")
    entries = (sidx[start + 4 + 12 * i :][:4] for i in range(min(count, len(sidx) // 12)))
    return offset + sum(int.from_bytes(entry, "big") & 0x7FFFFFFF for entry in entries)


def _avi_size(read: _Read, size: int) -> int | None:
    """Return for AVI the end of the list of frames. A lost index at the end of the file loses no frame."""
    position, known = 0, None
    while (head := read(position, 12))[:4] == b"RIFF" and len(head) == 12:
        limit, child = position + 8 + int.from_bytes(head[4:8], "little"), position + 12
        while child + 8 <= min(limit, size):
            chunk = read(child, 12)
            length = int.from_bytes(chunk[4:8], "little")
            if chunk[:4] == b"LIST" and not 0 < length < 0xFFFFFFFF:
                return None
            child += 8 + length
            if chunk[8:12] == b"movi":
                known = max(known or 0, child)
            child += length % 2
        if child > size or child <= position + 12:
            break
        position = child
    return known


_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_ELEMENTS = """
    1a45dfa3 18538067 114d9b74 1549a966 1654ae6b 1f43b675 1c53bb6b 1941a469 1043a770 1254c367 e7 a3 a0 ab a7 af 5854
    ec bf
"""
_ELEMENT_IDS = {bytes.fromhex(element) for element in _ELEMENTS.split()}  # of a file, its segment and its clusters


def _matroska_size(read: _Read, size: int) -> int | None:
    """Return for Matroska the end of the segment, or of its last element if it has no size (a live recording)."""
    position = 0
    while position < size:
        kind, length, first = _ebml_element(read(position, 12))
        if position and kind and kind not in _ELEMENT_IDS:
            return position  # other bytes, such as a tag, follow
        if kind == _SEGMENT and length is not None:
            return position + first + length
        if kind in (_SEGMENT, _CLUSTER) and length is None:
            length = 0  # its elements follow
        if length is None:
            return None  # damaged
        position += first + length
    return position


def _ebml_element(head: bytes) -> tuple[bytes, int | None, int]:
    """Return ID, size (None if unknown) and length of the header of an element; an empty ID if it is damaged."""
    id_bytes = 9 - head[0].bit_length() if head else 9
    if id_bytes > 4 or len(head) <= id_bytes or head[id_bytes] == 0:
        return b"", None, 0
    size_bytes = 9 - head[id_bytes].bit_length()
    value, unknown = int.from_bytes(head[id_bytes : id_bytes + size_bytes], "big"), (1 << 7 * size_bytes) - 1
    value &= unknown
    return head[:id_bytes], None if value == unknown else value, id_bytes + size_bytes


_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def _asf_size(read: _Read, size: int) -> int | None:
    """Return for ASF and WMV the end of the data object."""
    position = 0
    while position + 24 <= size:
        head = read(position, 24)
        length = int.from_bytes(head[16:], "little")
        if length < 24:
            return None
        position += length
        if head[:16] == _ASF_DATA:
            return position
    return position


def _flv_size(read: _Read, size: int) -> int | None:
    """Return for FLV the size in its metadata."""
    head = read(0, _HEAD_BYTES)
    start = head.find(b"\0\x08filesize\0")
    value = head[start + 11 : start + 19]
    if start < 0 or len(value) < 8:
        return None
    stored = struct.unpack(">d", value)[0]
    return int(stored) if 0 < stored < 2**62 else None


def _ogg_size(read: _Read, size: int) -> int | None:
    """Return for Ogg the end of the last page, which must end its stream."""
    tail_start = max(0, size - 2 * 65307)  # the largest page has 65307 bytes
    tail = read(tail_start, size - tail_start)
    start = tail.rfind(b"OggS\0")
    if start < 0:
        return None
    page = tail[start:]
    segments = page[27 : 27 + page[26]] if len(page) > 27 else b""
    end = tail_start + start + 27 + len(segments) + sum(segments)
    if len(page) < 28 or len(segments) < page[26]:
        return size + 1
    return end if page[5] & 4 else max(end, size) + 1


def _gif_size(read: _Read, size: int) -> int | None:
    """Return for GIF the end of the trailer."""
    content = read(0, size)
    position = 13 + _color_table_bytes(content[10:11])
    while content[position : position + 1] in (b"\x21", b"\x2c"):  # an extension or an image
        if content[position] == 0x21:
            position += 2
        else:
            position += 11 + _color_table_bytes(content[position + 9 : position + 10])
        while position < size and content[position]:
            position += 1 + content[position]
        position += 1
    complete = content[position : position + 1] == b"\x3b"
    return position + 1 if complete or position >= size else None  # None: damaged


def _color_table_bytes(flags: bytes) -> int:
    return 6 << (flags[0] & 7) if flags and flags[0] & 0x80 else 0


def _program_stream_size(read: _Read, size: int) -> int | None:
    """Return for MPEG-PS the end of the last packet of the last pack."""
    start = max(0, size - _HEAD_BYTES)
    tail = read(start, size - start)
    position = tail.rfind(b"\0\0\1\xba")
    while 0 <= position < len(tail) - 5 and tail[position : position + 3] == b"\0\0\1":
        kind = tail[position + 3]
        if kind == 0xBA:  # a pack header has 12 bytes in MPEG-1, and 14 and padding in MPEG-2
            padded = tail[position + 4] & 0xC0 == 0x40 and position + 13 < len(tail)
            position += 14 + (tail[position + 13] & 7) if padded else 12
        elif kind in (0xB9, 0xBE):  # the end code, or padding
            return size
        else:
            position += 6 + int.from_bytes(tail[position + 4 : position + 6], "big")
    return start + position if position > 0 else None


def _transport_stream_size(read: _Read, size: int) -> int | None:
    """Return for MPEG-TS the end of the last packet."""
    head = read(0, 1024)
    for length, start in itertools.product((188, 192, 204), range(204)):
        # Every packet starts with this byte, in M2TS (192 bytes) after a time of 4 bytes.
        if set(head[start::length]) == {0x47}:
            first = start - 4 if length == 192 else start
            end = first + (size - first) // length * length
            tail = read(end + start - first, 1)
            return end + length if tail == b"\x47" else end
    return None


def _ivf_size(read: _Read, size: int) -> int | None:
    """Return for IVF the end of the last frame."""
    position, specified = int.from_bytes(read(6, 2), "little"), int.from_bytes(read(24, 4), "little")
    times, end = [], position  # of the complete frames
    while 0 < position < size:
        head = read(position, 12)
        position += 12 + (int.from_bytes(head[:4], "little") if len(head) == 12 else 0)
        if position <= size:
            times.append(int.from_bytes(head[4:], "little"))
            end = position
    if specified in (0, 0xFFFFFFFF):  # unknown
        return position
    # The header specifies either the number of frames or their duration.
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1
    complete = len(times) >= specified or (len(times) > 1 and times[-1] - times[0] + 1.5 * step >= specified)
    return end if complete else size + 1


def _y4m_size(read: _Read, size: int) -> int | None:
    """Return for YUV4MPEG2 the end of the last frame."""
    header = read(0, 1024).split(b"\n", 1)[0]
    fields = {field[:1]: field[1:].decode("ascii", "replace") for field in header.split(b" ")[1:]}
    try:
        width, height = int(fields[b"W"]), int(fields[b"H"])
    except (KeyError, ValueError):
        return None
    layout = re.match(r"(420|411|422|444alpha|444|mono)(?:jpeg|mpeg2|paldv)?(?:p?(\d+))?$", fields.get(b"C", "420"))
    if layout is None:
        return None
    half_width, half_height = -(-width // 2), -(-height // 2)
    chroma = {
        "420": 2 * half_width * half_height,
        "411": 2 * -(-width // 4) * height,
        "422": 2 * half_width * height,
        "444": 2 * width * height,
        "444alpha": 3 * width * height,
        "mono": 0,
    }[layout[1]]
    frame = (width * height + chroma) * (2 if int(layout[2] or 8) > 8 else 1)
    return _equal_parts_end(read, size, len(header) + 1, b"FRAME\n", 6 + frame)


def _dv_size(read: _Read, size: int) -> int | None:
    """Return for raw DV the end of the last frame."""
    head = read(0, 480)
    if head[:3] != b"\x1f\x07\x00" or len(head) < 480:
        return None
    scale = {0: 1, 4: 2, 0x14: 4, 0x18: 2}.get(read(80 * 5 + 48 + 3, 1)[0] & 0x1F)
    return (
        None
        if scale is None
        else _equal_parts_end(read, size, 0, b"\x1f\x07\x00", scale * (144000 if head[3] & 0x80 else 120000))
    )


def _equal_parts_end(read: _Read, size: int, first: int, start: bytes, length: int) -> int:
    """Return the end of the last frame, if each has ``length`` bytes and begins with ``start``."""
    end = first + max(0, size - first) // length * length
    tail = read(end, len(start))
    return end + length if tail and start.startswith(tail) else end


def _swf_size(read: _Read, size: int) -> int | None:
    """Return for SWF the size in the header, if the file is not compressed."""
    head = read(0, 8)
    stored = int.from_bytes(head[4:], "little")
    return stored if head[:3] == b"FWS" and 0 < stored < 0x6400000 else None  # FFmpeg's value for an unknown size


def _mxf_size(read: _Read, size: int) -> int | None:
    """Return for MXF the end of the last unit, or at least the start of the footer that the header specifies."""
    key = b"\x06\x0e\x2b\x34"
    first = position = max(0, read(0, _HEAD_BYTES).find(key))
    footer = int.from_bytes(read(position + 20 + 24, 8), "big") if read(position + 16, 1) == b"\x83" else 0
    while position < size:
        head = read(position, 25)
        if head[:4] != key[: len(head)]:
            break
        if len(head) < 17 or (head[16] > 0x80 and len(head) < 17 + (head[16] & 0x7F)):
            return size + 1
        long = head[16] & 0x7F if head[16] & 0x80 else 0
        position += 17 + long + (int.from_bytes(head[17 : 17 + long], "big") if long else head[16])
    return max(position, first + footer + 1 if footer else 0)


def _real_media_size(read: _Read, size: int) -> int | None:
    """Return for RealMedia the end of the last packet of the data chunk, according to their number."""
    position = 0
    while position + 18 <= size:
        head = read(position, 18)
        if head[:4] == b"DATA":
            position += 18
            for _ in range(int.from_bytes(head[10:14], "big")):
                length = int.from_bytes(read(position + 2, 2), "big")
                position += max(length, 12)
                if position > size:
                    break
            return position
        position += max(10, int.from_bytes(head[4:8], "big"))
    return None


_FINDERS: dict[str, Callable[[_Read, int], int | None]] = {
    "avi": _avi_size,
    "matroska": _matroska_size,
    "asf": _asf_size,
    "flv": _flv_size,
    "ogg": _ogg_size,
    "gif": _gif_size,
    "mpeg": _program_stream_size,
    "mpegts": _transport_stream_size,
    "ivf": _ivf_size,
    "yuv4mpegpipe": _y4m_size,
    "dv": _dv_size,
    "swf": _swf_size,
    "mxf": _mxf_size,
    "rm": _real_media_size,
}
