"""Keyframes of H.264 at which decoding is exact.

FFmpeg marks every recovery point as a keyframe. With gradual refresh (x264: ``intra-refresh``), such a point is not a
complete picture: decoding has to start earlier, so that the first frames are not wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

_SLICE, _IDR, _SEI = 1, 5, 6
_RECOVERY_POINT = 6
_HEAD_BYTES = 64  # of a unit, which contain the fields that are read here
_INTRA_SLICES = (2, 4, 7, 9)


def starts_decoding(packet: bytes, header: bytes) -> bool:
    """Return whether decoding can start at a keyframe. ``header`` is the extradata of the stream."""
    recovered = None
    for unit in _units(packet, header):
        kind = unit[0] & 31 if unit else 0
        if kind == _IDR:
            return True
        if kind == _SEI and recovered is None:
            recovered = _recovery_frames(unit)
        elif kind == _SLICE:
            if recovered is not None:
                return recovered == 0
            bits = _Bits(unit[1:_HEAD_BYTES])
            bits.read_golomb()  # number of the first macroblock
            return bits.read_golomb() in _INTRA_SLICES
    return True  # another kind of data, such as separate fields


def _units(packet: bytes, header: bytes) -> Iterator[bytes]:
    """Yield the start of each NAL unit, which either follows its length or a start code."""
    if header[:1] == b"\x01" and len(header) > 4:
        length_bytes, position = (header[4] & 3) + 1, 0
        while position + length_bytes < len(packet):
            first = position + length_bytes
            length = int.from_bytes(packet[position:first], "big")
            yield packet[first : first + min(length, 4096)]
            position = first + length
        return
    position = packet.find(b"\0\0\1")
    while position >= 0:
        unit = packet[position + 3 : position + 4096]
        end = unit.find(b"\0\0\1") if unit[:1] and unit[0] & 31 == _SEI else -1
        yield unit[:end] if end >= 0 else unit
        position = packet.find(b"\0\0\1", position + 3)


def _recovery_frames(sei: bytes) -> int | None:
    """Return the number of frames until the picture is exact, if the unit contains a recovery point."""
    content, position = sei.replace(b"\0\0\3", b"\0\0"), 1
    while position + 2 < len(content):
        values = []
        for _ in range(2):  # type and size, each as a sum of bytes
            value = 0
            while position < len(content) - 1 and content[position] == 255:
                value, position = value + 255, position + 1
            values.append(value + content[position])
            position += 1
            if position >= len(content):
                return None
        if values[0] == _RECOVERY_POINT:
            return _Bits(content[position : position + _HEAD_BYTES]).read_golomb()
        position += values[1]
    return None


class _Bits:
    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def read_golomb(self) -> int:
        """Read an unsigned Exp-Golomb code; 0 at the end of the data."""
        rest = self._value & ((1 << self._left) - 1)
        zeros = self._left - rest.bit_length()
        length = 2 * zeros + 1
        if rest == 0 or length > self._left:
            return 0
        self._left -= length
        return (rest >> self._left) - 1
