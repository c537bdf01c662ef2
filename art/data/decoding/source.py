"""Locating the frames of a video file.

The packets of the file are listed with PyAV, without decoding any: this is cheap and returns the true time of every
frame, regardless of the frame count, frame rate and start time in the header.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.stream
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from art.data.decoding.containers import OPEN_OPTIONS, check_not_script, complete_size, not_allowed, short_stream
from art.data.decoding.frames import Unreadable
from art.data.decoding.h264 import starts_decoding

#: Up to this many compressed bytes are kept in memory between listing and decoding.
MAX_CACHED_BYTES = 32 * 2**20

#: Seconds. Matroska rounds times to 1 ms, so a frame may start up to half of that before its true time.
TOLERANCE = 6e-4

#: Containers that remain readable when files are joined by concatenation.
_JOINABLE = ("mpegts", "mpeg")

#: Containers whose demuxers may return decoding times as presentation times.
_IN_DECODING_ORDER = ("mxf", "asf")

_DISCARD = getattr(av.stream, "Discard", None)  # None before PyAV 18
_STRICT = {"err_detect": "explode"}  # option of FFmpeg's decoders
_MAX_TICKS = 2**62  # FFmpeg's times have 64 bits


class PacketInfo(NamedTuple):
    """One compressed frame."""

    time: int  # presentation time, in ticks of its VideoSource
    keyframe: bool  # decoding can start here
    shown: bool  # False for a frame that an edit list keeps only as a reference for others


class FrameIndex(NamedTuple):
    """The packets of a file and the frames of the requested span."""

    packets: list[PacketInfo]  # those that were read, in decoding order
    cached: list[av.Packet] | None  # their content; None if it exceeds MAX_CACHED_BYTES
    entry: dict[int, int]  # for the time of each packet, the position of the packet at which decoding has to start
    times: list[int]  # of the requested frames, ascending
    lost: int = 0  # number of frames before the first keyframe that cannot be decoded; they are not in ``times``


@contextlib.contextmanager
def open_source(file: Path | bytes) -> Iterator[VideoSource]:
    """Open the first decodable video stream of a file, given as a path or as its content. Raises Unreadable if there is
    none, if the file is a script or playlist, or if FFmpeg reports an error, on opening or later."""
    check_not_script(file)
    source = None
    try:
        source = VideoSource(file)
        yield source
    except av.FFmpegError as error:  # not all of them are OSError
        if source is None and isinstance(error, av.ArgumentError):
            raise not_allowed() from error
        raise Unreadable(f"cannot be read: {error.strerror or error}") from error
    finally:
        if source is not None:
            source.container.close()


def _open_stream(file: Path | bytes) -> tuple[InputContainer, VideoStream]:
    # Without "file:", a name with a colon would be parsed as a protocol.
    opened = io.BytesIO(file) if isinstance(file, bytes) else f"file:{file}"
    container = av.open(
        opened, "r", format=short_stream(file), metadata_errors="replace", container_options=OPEN_OPTIONS
    )
    videos = [s for s in container.streams.video if s.codec_context is not None and not _is_cover(s)]
    if not videos:
        kinds = {"cover" if _is_cover(stream) else stream.type for stream in container.streams}
        container.close()
        raise Unreadable(f"has no video that can be decoded, only {', '.join(sorted(kinds)) or 'nothing'}")
    # Data loading already uses one worker process per core.
    videos[0].codec_context.thread_type = "NONE"
    videos[0].codec_context.thread_count = 1
    for stream in container.streams:
        if stream.index != videos[0].index and _DISCARD is not None:
            stream.discard = _DISCARD.all
    return container, videos[0]


def _is_cover(stream: Stream) -> bool:
    """Return whether the stream is the cover image of an audio file."""
    return bool(stream.disposition & stream.disposition.attached_pic)


class VideoSource:
    """The video stream of an open file. Its clock has ticks of ``time_base`` seconds; ``origin`` is the first frame.

    Some files have no usable presentation times: raw streams store none, files joined by concatenation start again at
    the first time, and for reordered frames of AVI the demuxer guesses wrong. With ``no_timestamps``, a time is
    therefore the number of a frame, and the file is always read from its beginning. Each frame occupies a slot, in
    ticks; the slots in between may be empty, which repeats the frame before.
    """

    def __init__(self, file: Path | bytes) -> None:
        self.file = file
        self.container, self.stream = _open_stream(file)
        stream = self.stream
        self.time_base, self.origin = Fraction(stream.time_base or 1), stream.start_time or 0
        self._first = self.origin
        self._early = max(self.origin - int(10 / self.time_base), -_MAX_TICKS)
        self._fresh = True  # no packet was read yet
        self._strict = False
        self.refreshed = False  # whether some keyframes of the header only start a gradual refresh of the picture
        self._h264_header = stream.codec_context.extradata or b"" if stream.codec_context.name == "h264" else None
        self.no_timestamps = stream.start_time is None  # a raw stream, for which FFmpeg's parser may guess times
        self._raw = self.no_timestamps
        self._slots: list[int] = []  # slot of each frame; filled by index_frames
        self._interval = 1  # of two slots, according to the frame rate
        rate = stream.average_rate or stream.guessed_rate
        if self.container.format.name == "avi":
            if not rate:
                raise Unreadable("is an AVI file without a frame rate")
            self.no_timestamps, self.time_base, self.origin = True, 1 / Fraction(rate), 0
        else:
            self._interval = max(1, round(1 / (rate or Fraction(25)) / self.time_base))

    def ticks(self, time: int) -> int:
        """Return ticks of ``time_base`` since the first frame."""
        if self.no_timestamps and self._slots:
            return self._slots[min(time, len(self._slots) - 1)] - self._slots[0]
        return time - self.origin

    def seconds(self, time: int) -> float:
        """Return seconds since the first frame."""
        return float(self.ticks(time) * self.time_base)

    def packets_from(self, time: int) -> Iterator[av.Packet]:
        """Return the packets from the last keyframe at or before ``time``; without timestamps, all packets.

        The last packet is empty, which flushes the decoder.
        """
        target, step = time, 1.0
        while not self.no_timestamps and target > self.origin:
            self._fresh = False
            try:
                self.container.seek(target, stream=self.stream)
            except av.FFmpegError:
                return self._packets_without_seek(time)
            packets = self._packets()
            # Some demuxers do not seek to a keyframe. Others compare with the decoding time, which is earlier than the
            # presentation time, and may seek to a keyframe that is too late.
            before = itertools.takewhile(lambda packet: packet.dts is None or packet.dts <= time, packets)
            keyframe = next((packet for packet in before if self._is_keyframe(packet)), None)
            if keyframe is not None and keyframe.pts is not None and keyframe.pts <= time:
                return itertools.chain([keyframe], packets)
            target -= int(step / self.time_base)
            step *= 2
        self._rewind()
        return self._packets()

    def _packets_without_seek(self, time: int) -> Iterator[av.Packet]:
        """Return the packets that :meth:`packets_from` returns, for demuxers that cannot seek (SWF, raw streams)."""
        self._reopen()
        first = 0
        for position, packet in enumerate(self._packets()):
            if self._is_keyframe(packet) and packet.pts is not None and packet.pts <= time:
                first = position
        self._reopen()
        return itertools.islice(self._packets(), first, None)

    def _is_keyframe(self, packet: av.Packet) -> bool:
        if not packet.is_keyframe or self._h264_header is None:
            return packet.is_keyframe
        exact = starts_decoding(bytes(packet), self._h264_header)
        self.refreshed = self.refreshed or not exact
        return exact

    def _reopen(self) -> None:
        self.container.close()
        self.container, self.stream = _open_stream(self.file)
        if self._strict:
            self.stream.codec_context.options = _STRICT

    def _rewind(self) -> None:
        if self._fresh:
            self._fresh = False
        elif self.no_timestamps:
            self._reopen()  # raw streams cannot be rewound, and a demuxer sends some data, such as a palette, only once
        else:
            try:
                # Seek to well before the first frame, to skip no packet. Some demuxers (FLV) reject that.
                self.container.seek(self._early, stream=self.stream)
            except av.FFmpegError:
                try:
                    self.container.seek(self._first, stream=self.stream)
                except av.FFmpegError:
                    self._reopen()

    def _packets(self) -> Iterator[av.Packet]:
        for packet in self.container.demux(self.stream):
            # The empty packet at the end flushes the decoder. Elsewhere (AVI: repeat the frame) it would end decoding.
            if packet.size or packet.dts is None:
                yield packet

    def index_frames(self, start: float | None, end: float | None) -> FrameIndex:
        """List the frames from ``start`` (included) to ``end`` (excluded), in seconds since the first frame. Raises
        Unreadable if there are none, or the file is damaged or truncated."""
        joinable = self.container.format.name in _JOINABLE  # only reading from the beginning shows whether it is joined
        packets, cached = self._read_packets(0.0 if joinable else start or 0.0, end)
        entries = _decoding_entries(packets)
        leading = [time for time, position in entries.items() if position is None]
        if start and not self.no_timestamps:  # frames shown before the first keyframe that was read are not in the part
            leading = [time for time in leading if self.seconds(time) >= start - TOLERANCE]
        lost = self._undecodable(leading, packets, cached) if leading else set()
        times = sorted(packet.time for packet in packets if packet.shown and packet.time not in lost)
        if lost and not times:
            raise Unreadable("has no keyframe, and the decoder returns no frame without one")
        times = self.select_times(times, start, end)
        return FrameIndex(packets, cached, {t: p or 0 for t, p in entries.items()}, times, len(lost))

    def select_times(self, times: list[int], start: float | None, end: float | None) -> list[int]:
        """Return those of ``times`` that are from ``start`` to ``end``. Raises Unreadable if there are none."""
        if start is not None or end is not None:
            first = (start or 0.0) - TOLERANCE
            last = float("inf") if end is None else end - TOLERANCE
            times = [time for time in times if first <= self.seconds(time) < last]
        if not times:
            span = f" from {start or 0:g} s to {'its end' if end is None else f'{end:g} s'}"
            raise Unreadable(f"has no video frame{'' if start is None and end is None else span}")
        return times

    def _read_packets(self, start: float, end: float | None) -> tuple[list[PacketInfo], list[av.Packet] | None]:
        packets: list[PacketInfo] = []
        cached: list[av.Packet] | None = []
        stamps: list[tuple[int | None, int | None, bool]] = []
        total_bytes, latest, suspect, damaged, partial = 0, None, 0, False, False
        seen: set[int | None] = set()
        in_order = self.container.format.name in _IN_DECODING_ORDER and bool(self.stream.codec_context.has_b_frames)
        is_ts = self.container.format.name == "mpegts"
        stop = None
        if end is not None and math.isfinite(end) and not self.no_timestamps:
            stop = self.origin + math.ceil(Fraction(end) / self.time_base)
        first = int(start / self.time_base) if math.isfinite(start) else 0
        intra_only = self.stream.codec_context.codec.intra_only
        for packet in self.packets_from(min(self.origin + first, _MAX_TICKS)):
            if packet.size == 0:
                continue
            pts, keyframe = packet.pts, intra_only or self._is_keyframe(packet)
            # No frame that is decoded before a keyframe is shown after it, except in joined files.
            joined = keyframe and pts is not None and latest is not None and pts <= latest
            if not self.no_timestamps and (pts is None or joined or pts in seen):
                return self._read_without_timestamps(start, end)
            seen.add(pts)
            in_order = in_order and (pts is None or latest is None or pts > latest)
            latest = pts if latest is None or (pts is not None and pts > latest) else latest
            dts = packet.dts
            if stop is not None and dts is not None and dts >= stop:
                partial = True  # no frame is shown before it is decoded
                break
            if packet.is_corrupt and is_ts:
                # Either data is missing, or a part of joined files ends: then a keyframe follows this packet or the
                # next one (FFmpeg's parser sets the flag one packet early).
                suspect = 2
                self._be_strict()
            elif suspect:
                suspect = 0 if keyframe else suspect - 1
                damaged = not keyframe and not suspect
            if damaged or (packet.is_corrupt and not is_ts):
                damaged = True
                break
            time = len(packets) if self.no_timestamps or pts is None else pts
            stamps.append((pts, dts, keyframe))
            packets.append(PacketInfo(time, keyframe, not packet.is_discard))
            total_bytes += packet.size
            if cached is not None:
                cached.append(packet)
                cached = None if total_bytes > MAX_CACHED_BYTES else cached
        if in_order and not self.no_timestamps:  # although the stream reorders its frames
            return self._read_without_timestamps(start, end)
        if partial:
            return packets, cached
        self._slots = self._assign_slots(stamps) if self.no_timestamps else []
        found_end = self.seconds(max(packet.time for packet in packets)) if packets else 0.0
        if end is None or found_end < end - TOLERANCE:
            self._check_complete(found_end)
            if damaged:
                problem = "damaged: data is missing" if is_ts else "truncated or damaged"
                raise Unreadable(f"is {problem} after {found_end:.2f} s")
        return packets, cached

    def _read_without_timestamps(
        self, start: float, end: float | None
    ) -> tuple[list[PacketInfo], list[av.Packet] | None]:
        self.no_timestamps = True
        return self._read_packets(start, end)

    def _assign_slots(self, stamps: Sequence[tuple[int | None, int | None, bool]]) -> list[int]:
        """Return the slot of each frame, ascending: the k-th frame shown has the k-th slot. ``stamps`` are the
        presentation and decoding time of each packet, and whether it is a keyframe."""
        if self.container.format.name == "avi":
            return sorted(number if dts is None else dts for number, (_, dts, _) in enumerate(stamps))
        slots: list[int] = []
        latest = -self._interval
        offset = 0  # of this part of a joined file
        for pts, _, keyframe in stamps:
            slot = latest + self._interval if pts is None or self._raw else pts + offset
            if keyframe and slots and slot <= latest:
                offset += latest + self._interval - slot
                slot = latest + self._interval
            slots.append(slot)
            latest = max(latest, slot) if len(slots) > 1 else slot
        return sorted(slots)

    def _be_strict(self) -> None:
        """Make the decoder raise an error for damaged data, instead of concealing it."""
        if not self._strict:
            self._strict = True
            self.stream.codec_context.options = _STRICT

    def _undecodable(
        self, leading: Sequence[int], packets: Sequence[PacketInfo], cached: list[av.Packet] | None
    ) -> set[int]:
        """Return which of ``leading``, the times without an earlier keyframe, cannot be decoded.

        Some decoders return noise for frames that precede the first keyframe. Of the frames that follow it but are
        shown before it, and if there is no keyframe, those are decodable that the decoder returns.
        """
        first = next((position for position, packet in enumerate(packets) if packet.keyframe), 0)
        lost = {packet.time for packet in packets[:first]}
        remaining = set(leading) - lost
        if not remaining:
            return lost
        following = self.packets_from(packets[0].time) if cached is None else cached
        following = itertools.islice(following, first, len(packets))
        context = self.stream.codec_context
        context.flush_buffers()
        found: list[int | None] = []
        for packet in itertools.chain(following, [None]):
            with contextlib.suppress(av.InvalidDataError):
                found += [frame.pts for frame in context.decode(packet if packet and packet.size else None)]
            if not self.no_timestamps and any(time is None or time > max(leading) for time in found):
                break
        if self.no_timestamps:  # those that are missing are the first ones
            return lost | set(leading[: max(0, len(packets) - first - len(found))])
        return lost | remaining.difference(found)

    def _check_complete(self, found_end: float) -> None:
        """Raise Unreadable if packets are missing at the end of the file, whose last frame is at ``found_end``."""
        size = self.container.size
        expected = complete_size(self.file, size, self.container.format.name, self._indexed_end)
        if expected is None or expected <= size:
            return
        end = found_end + float(self._interval * self.time_base)
        specified = (self.container.duration or 0) / av.time_base
        if specified > end + float(self._interval * self.time_base) / 2:
            frames = f"it ends after {end:.2f} s, but its header specifies {specified:.2f} s"
        else:
            frames = f"it ends after {end:.2f} s, inside a frame or other data, such as sound"
        raise Unreadable(f"is truncated: {frames} ({size:,} of at least {expected:,} bytes)")

    def _indexed_end(self) -> int:
        """Return the end of the last packet of any stream in the index of the container; 0 without an index."""
        entries = (entry for s in self.container.streams for entry in getattr(s, "index_entries", ()))
        return max((entry.pos + entry.size for entry in entries), default=0)


def _decoding_entries(packets: Sequence[PacketInfo]) -> dict[int, int | None]:
    """Return for the time of each packet the position of the keyframe at which decoding has to start, or None if there
    is none before it."""
    entries: dict[int, int | None] = {}
    keyframes: list[int] = []
    for position, packet in enumerate(packets):
        if packet.keyframe:
            keyframes.append(position)
        # A frame shown before its keyframe also references the previous keyframe (open GOP).
        entry = next((k for k in reversed(keyframes) if packets[k].time <= packet.time), None)
        entries.setdefault(packet.time, entry)
    return entries
