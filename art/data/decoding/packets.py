"""Which frames a video file holds and when each is shown, found without decoding any.

Reading the packets is cheap, and gives the true time of every frame, whatever the file's header says of their number,
their rate or their first time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

#: So many frames at the end of a stream may fail to come out of a decoder without any damage.
HELD_BACK = 2

#: So many compressed bytes are kept from listing to decoding.
HELD_BYTES = 32 * 2**20

#: Seconds. Matroska rounds times to 1 ms, so that a frame may lie half of that before its true time.
TOLERANCE = 6e-4


class Unreadable(Exception):
    """Why a file cannot be read; whoever opened it knows which one it is."""


@dataclass(frozen=True)
class Packet:
    """One compressed frame.

    Attributes:
        time: when it is shown, on the clock of its :class:`Source`.
        keyframe: whether decoding can start here.
        shown: False for what an edit list keeps for the sake of other frames only.
    """

    time: int
    keyframe: bool
    shown: bool


@dataclass(frozen=True)
class Listing:
    """What was found.

    Attributes:
        packets: those that were read, in the order of decoding.
        held: their contents, so that nothing has to be read again; None where they are more than HELD_BYTES.
        entry: for the time of each packet, the position of the packet that decoding has to start from.
        times: of the frames that were asked for, ascending.
    """

    packets: list[Packet]
    held: list[av.Packet] | None
    entry: dict[int, int]
    times: list[int]


class Source:
    """The video stream of an open file. Its clock has ticks of ``time_base`` seconds and shows ``origin`` at the first
    frame.

    AVI holds no time of display, and what the demuxer makes up for it is wrong where frames are reordered. There,
    frames are ``counted``: the time is the frame's number, and the file is always read from its beginning. Each stands
    in a slot of the frame rate, and some slots may be empty: then the picture before stays.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container = container
        self.stream = stream
        self.time_base, self.origin = Fraction(stream.time_base or 1), stream.start_time or 0
        self._first = self.origin
        self._early = self.origin - int(10 / self.time_base)
        self.counted = False
        self._slots: list[int] = []  # of each counted frame, once they have been listed
        if container.format.name == "avi":
            rate = stream.average_rate
            if not rate:
                raise Unreadable("is an AVI file without a frame rate")
            self.counted, self.time_base, self.origin = True, 1 / Fraction(rate), 0

    def ticks(self, time: int) -> int:
        """Ticks of ``time_base`` since the first frame."""
        if self.counted and self._slots:
            return self._slots[min(time, len(self._slots) - 1)] - self._slots[0]
        return time - self.origin

    def seconds(self, time: int) -> float:
        """Seconds since the first frame."""
        return float(self.ticks(time) * self.time_base)

    def packets_from(self, time: int) -> Iterator[av.Packet]:
        """The packets from the last keyframe at or before ``time`` on; from the first of all where frames are counted.

        Ends with the empty packet that makes a decoder give back what it holds.
        """
        goal, step = time, 1.0
        while not self.counted and goal > self.origin:
            self.container.seek(goal, stream=self.stream)
            packets = self._packets()
            # Not every demuxer lands on a keyframe, and some go by the time of decoding, which is earlier than the time
            # of display and may lead to a keyframe that is too late.
            found = next((packet for packet in packets if packet.is_keyframe), None)
            if found is not None and found.pts is not None and found.pts <= time:
                return itertools.chain([found], packets)
            goal -= int(step / self.time_base)
            step *= 2
        try:
            # Well before the first time, so that no packet is passed over. Some demuxers (AVI, FLV) refuse that.
            self.container.seek(self._early, stream=self.stream)
        except av.FFmpegError:
            self.container.seek(self._first, stream=self.stream)
        return self._packets()

    def _packets(self) -> Iterator[av.Packet]:
        for packet in self.container.demux(self.stream):
            # An empty packet at the end empties the decoder. Elsewhere (AVI: "the same picture again") it would end it.
            if packet.size or packet.dts is None:
                yield packet

    def list_frames(self, start: float | None, end: float | None) -> Listing:
        """The frames from ``start`` (included) to ``end`` (excluded), in seconds since the first frame.

        Raises:
            Unreadable: there is none, or the file is damaged or truncated.
        """
        whole = start is None and end is None
        packets, held = self._list_packets(start or 0.0, end)
        if end is None:
            self._check_length(packets)
        first = (start or 0.0) - TOLERANCE
        last = float("inf") if end is None else end - TOLERANCE
        shown = sorted(packet.time for packet in packets if packet.shown)
        times = shown if whole else [time for time in shown if first <= self.seconds(time) < last]
        if not times:
            span = "" if whole else f" from {start or 0:g} s to {'its end' if end is None else f'{end:g} s'}"
            raise Unreadable(f"has no video frame{span}")
        return Listing(packets, held, _entries(packets), times)

    def _list_packets(self, start: float, end: float | None) -> tuple[list[Packet], list[av.Packet] | None]:
        packets: list[Packet] = []
        held: list[av.Packet] | None = []
        held_bytes = 0
        slots: list[int] = []
        for packet in self.packets_from(self.origin + int(start / self.time_base)):
            if packet.size == 0:
                continue
            time = len(packets) if self.counted else packet.pts
            if time is None:
                raise Unreadable("holds a frame without a time of display")
            if packet.is_corrupt:
                raise Unreadable(f"is truncated or damaged at {self.seconds(time):.2f} s")
            if end is not None and not self.counted and packet.dts is not None and self.seconds(packet.dts) >= end:
                break  # no frame is shown before it is decoded
            slots.append(time if packet.dts is None else packet.dts)
            packets.append(Packet(time, packet.is_keyframe, not packet.is_discard))
            held_bytes += packet.size
            if held is not None:
                held.append(packet)
                held = None if held_bytes > HELD_BYTES else held
        self._slots = sorted(slots) if self.counted else []  # what is shown as k-th has the k-th slot
        return packets, held

    def _check_length(self, packets: Sequence[Packet]) -> None:
        """Find files that were cut off between two packets, where their header tells how long they should be."""
        announced = self._announced_end()
        if announced is None or not packets:
            return
        times = self._slots or [packet.time for packet in packets]
        interval = (max(times) - min(times)) / max(len(times) - 1, 1)
        end = max(times) + interval
        if announced - end > (HELD_BACK + 0.5) * interval:
            first = self._slots[0] if self._slots else self.origin
            there, header = ((time - first) * self.time_base for time in (end, announced))
            raise Unreadable(f"is truncated: it ends after {float(there):.2f} s, its header says {float(header):.2f} s")

    def _announced_end(self) -> float | None:
        """The time at which the video ends by the header, None where that is silent or does not matter (MP4 cannot be
        opened, or marks the packet, when it is truncated)."""
        if self.counted:
            return self.stream.frames or None
        if "matroska" not in self.container.format.name:
            return None
        tag = self.stream.metadata.get("DURATION", "").strip("\0 ")
        if tag:
            hours, minutes, seconds = tag.split(":")
            return (int(hours) * 3600 + int(minutes) * 60 + float(seconds)) / float(self.time_base)
        if self.container.duration and len(self.container.streams) == 1:  # with sound, the sound may last longer
            return self.container.duration / av.time_base / float(self.time_base)
        return None


def _entries(packets: Sequence[Packet]) -> dict[int, int]:
    entries: dict[int, int] = {}
    keyframes: list[int] = []
    for position, packet in enumerate(packets):
        if packet.keyframe:
            keyframes.append(position)
        # A frame shown before its keyframe also leans on the keyframe before that one (open GOP).
        entry = next((k for k in reversed(keyframes) if packets[k].time <= packet.time), 0)
        entries.setdefault(packet.time, entry)
    return entries


class ListedSpan:
    """What a decoder tells of the frames of a span before it decodes any."""

    def __init__(self, source: Source, listing: Listing) -> None:
        self._source = source
        self._listing = listing

    @property
    def count(self) -> int:
        """How many frames there are."""
        return len(self._listing.times)

    @property
    def times(self) -> list[float]:
        """When each is shown, seconds since the first frame of the file."""
        return [self._source.seconds(time) for time in self._listing.times]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width by the header."""
        return self._source.stream.height, self._source.stream.width
