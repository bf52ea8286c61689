"""Files of scheduler events: what core.Scheduler was told, and when, so that it can be told so again.

A file is a sequence of frames: 4 bytes of length (big endian), then msgpack of [kind, now, content]. The
first frame has kind "settings" and the SchedulerSettings; every file can be replayed on its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, get_args

import msgspec

from llumnix.core.events import AdoptedInstance, AdoptInstances, Event, InstanceState
from llumnix.core.member import EMPTYING, SERVING, InstanceView
from llumnix.core.settings import SchedulerSettings
from llumnix.errors import ConfigError

_SETTINGS = "settings"
_LENGTH_BYTES = 4
_FLUSH_EVERY_S = 1.0


class _Frame(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    now: float
    content: msgspec.Raw


_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(_Frame).decode
_decode_settings = msgspec.msgpack.Decoder(SchedulerSettings).decode
_DECODERS = {kind.__name__: msgspec.msgpack.Decoder(kind) for kind in get_args(Event)}


@dataclass(frozen=True, slots=True)
class Recording:
    """A file of events: `Scheduler(settings)` that is told them does as the recorded one did."""

    settings: SchedulerSettings
    events: Iterator[tuple[float, Event]]
    """(now, event), oldest first; may raise ConfigError while it is read."""


def read(path: Path) -> Recording:
    """One file of events; raises ConfigError if it is none. A last frame that was cut off is left out."""
    frames = _frames(path)
    first = next(frames, None)
    if first is None or first.kind != _SETTINGS:
        raise ConfigError(f"{path} does not begin with settings: expected a file of [scheduler] record.")
    try:
        settings = _decode_settings(first.content)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} has settings of another llumnix version ({error}).") from None
    return Recording(settings, _events(path, frames))


def _frames(path: Path) -> Iterator[_Frame]:
    try:
        with path.open("rb") as file:
            while len(head := file.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
                num_bytes = int.from_bytes(head, "big")
                content = file.read(num_bytes)
                if len(content) < num_bytes:
                    return
                yield _decode_frame(content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): expected a file of events.") from None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} is not a file of [scheduler] record ({error}).") from None


def _events(path: Path, frames: Iterator[_Frame]) -> Iterator[tuple[float, Event]]:
    for frame in frames:
        decoder = _DECODERS.get(frame.kind)
        if decoder is None:
            raise ConfigError(
                f"{path} has an event {frame.kind!r}, which this llumnix version does not know."
            )
        try:
            yield frame.now, decoder.decode(frame.content)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path} has a {frame.kind} of another llumnix version ({error}).") from None


class EventLog:
    """Writes events to `path`; older files are path.1, path.2, ... Not thread-safe; raises OSError.

    Guarantee: `max_files` files at most. What was written reaches the disk within a second of the next write.
    """

    def __init__(self, path: Path, *, max_files: int = 8) -> None:
        self._path = path
        self._max_files = max_files
        self._file: BinaryIO | None = None
        self._flush_at = 0.0
        self.num_bytes = 0
        """Written to the present file."""

    def begin(self, settings: SchedulerSettings, opening: Sequence[Event], now: float) -> None:
        """Start a new file; `opening`: events that bring a new scheduler to where the present one is."""
        self.close()
        self._rotate()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
        self.num_bytes = 0
        self._write(_SETTINGS, now, settings)
        for event in opening:
            self.write(event, now)

    def write(self, event: Event, now: float) -> None:
        """Append an event; `begin` comes first."""
        self._write(type(event).__name__, now, event)

    def _write(self, kind: str, now: float, content: object) -> None:
        assert self._file is not None
        frame = _encode(_Frame(kind, now, msgspec.Raw(_encode(content))))
        self._file.write(len(frame).to_bytes(_LENGTH_BYTES, "big"))
        self._file.write(frame)
        self.num_bytes += _LENGTH_BYTES + len(frame)
        if now >= self._flush_at:
            self._file.flush()
            self._flush_at = now + _FLUSH_EVERY_S

    def _rotate(self) -> None:
        files = [self._path, *(self._numbered(number) for number in range(1, self._max_files))]
        for older, newer in zip(reversed(files), reversed(files[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def opening_events(
    views: Sequence[InstanceView],
    table_version: int,
    cordoned_nodes: tuple[str, ...],
    settings: SchedulerSettings,
) -> tuple[SchedulerSettings, list[Event]]:
    """Settings and events that bring a new scheduler to where one with these views is.

    Exact for instances that serve; one that starts meanwhile is asked for again.
    """
    stays = [
        v for v in views if v.state is not InstanceState.DEAD and (v.state in EMPTYING or not v.removing)
    ]
    adopted = tuple(
        AdoptedInstance(
            v.instance,
            v.uid,
            v.incarnation,
            v.node,
            v.pid,
            v.state in SERVING,
            v.cordoned,
            v.drain,
            v.cordoned_with_node,
        )
        for v in stays
    )
    events: list[Event] = []
    if adopted or cordoned_nodes:
        events.append(AdoptInstances(adopted, table_version, cordoned_nodes))
    numbered = replace(
        settings,
        first_uid=max([settings.first_uid, *(v.uid + 1 for v in views)]),
        first_instance=max([settings.first_instance, *(int(v.instance[1:]) + 1 for v in views)]),
    )
    return numbered, events
