"""NCCL and a GPU that exist in this process only: ctypes calls them as it would call the real ones."""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from llumnix.engine.transport.base import TransportError

_INT, _PTR, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
REMOTE_ERROR = 6


class IdStruct(ctypes.Structure):
    """ncclUniqueId as nccl.h has it, written down apart from the code under test."""

    _fields_ = [("internal", ctypes.c_char * 128)]


class ConfigStruct(ctypes.Structure):
    """ncclConfig_t of nccl.h 2.30, longer than what the code under test passes."""

    _fields_ = [
        ("size", _SIZE),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        *[(name, _INT) for name in ("blocking", "cga_cluster_size", "min_ctas", "max_ctas")],
        ("net_name", _PTR),
        *[(name, _INT) for name in ("split_share", "traffic_class")],
        ("comm_name", _PTR),
        *[(name, _INT) for name in ("collnet_enable", "cta_policy", "shrink_share", "nvls_ctas")],
    ]


@dataclass
class _Comm:
    handle: int
    pair: bytes
    rank: int
    polls_until_ready: int
    stream: int = 0
    ops: list[tuple[int, int]] = field(default_factory=list)
    """(address, bytes) not matched by the other rank yet."""
    aborted: bool = False


@dataclass
class FakeNccl:
    """Sends meet receives in order; what is asked of it can be delayed, stuck or failed."""

    version: int = 23004
    init_polls: int = 3
    stuck: bool = False
    """Nothing completes any more."""
    async_error: int = 0
    init_result: int = 7
    calls: list[str] = field(default_factory=list)
    configs: list[dict[str, int]] = field(default_factory=list)
    comms: dict[int, _Comm] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        result = _INT
        prototypes: dict[str, tuple[Any, Callable[..., Any]]] = {
            "ncclGetVersion": (ctypes.CFUNCTYPE(result, ctypes.POINTER(_INT)), self._get_version),
            "ncclGetErrorString": (ctypes.CFUNCTYPE(_PTR, _INT), self._error_string),
            "ncclGetUniqueId": (ctypes.CFUNCTYPE(result, ctypes.POINTER(IdStruct)), self._unique_id),
            "ncclCommInitRankConfig": (
                ctypes.CFUNCTYPE(
                    result, ctypes.POINTER(_PTR), _INT, IdStruct, _INT, ctypes.POINTER(ConfigStruct)
                ),
                self._init,
            ),
            "ncclCommGetAsyncError": (
                ctypes.CFUNCTYPE(result, _PTR, ctypes.POINTER(_INT)),
                self._async_error,
            ),
            "ncclSend": (ctypes.CFUNCTYPE(result, _PTR, _SIZE, _INT, _INT, _PTR, _PTR), self._send),
            "ncclRecv": (ctypes.CFUNCTYPE(result, _PTR, _SIZE, _INT, _INT, _PTR, _PTR), self._send),
            "ncclCommAbort": (ctypes.CFUNCTYPE(result, _PTR), self._abort),
        }
        self._text = ctypes.create_string_buffer(b"remote process exited")
        for name, (prototype, function) in prototypes.items():
            setattr(self, name, prototype(function))

    def alive(self) -> list[int]:
        """Communicators that were made and not aborted."""
        return [comm.handle for comm in self.comms.values() if not comm.aborted]

    def new_stream(self) -> int:
        return 0x550000000000 + next(self._numbers)

    def is_idle(self, stream: int) -> bool:
        """Whether a stream has run all that it was given."""
        with self._lock:
            return not self.stuck and not any(c.ops for c in self.comms.values() if c.stream == stream)

    def _get_version(self, version: Any) -> int:
        version[0] = self.version
        return 0

    def _error_string(self, _result: int) -> int:
        return ctypes.addressof(self._text)

    def _unique_id(self, unique_id: Any) -> int:
        # Zeros and high bytes: a wrapper that treats it as text would cut or change it.
        name = b"\x00\xff" + next(self._numbers).to_bytes(8, "little") + b"\x00" * 116 + b"\x81\x00"
        ctypes.memmove(unique_id, name, 128)
        return 0

    def _init(self, comm: Any, num_ranks: int, unique_id: IdStruct, rank: int, config: Any) -> int:
        with self._lock:
            self.calls.append("init")
            given = config[0]
            self.configs.append({name: getattr(given, name) for name, *_ in ConfigStruct._fields_})
            handle = 0x7F0000000000 + next(self._numbers)  # needs all of a pointer's bits
            pair = ctypes.string_at(ctypes.addressof(unique_id), 128)
            assert num_ranks == 2
            self.comms[handle] = _Comm(handle, pair, rank, self.init_polls)
            comm[0] = handle
            return self.init_result

    def _async_error(self, comm: int, state: Any) -> int:
        with self._lock:
            self.calls.append("poll")
            known = self.comms[comm]
            assert not known.aborted
            known.polls_until_ready -= 1
            state[0] = self.async_error or (7 if known.polls_until_ready > 0 else 0)
            return 0

    def _send(self, address: int, num_bytes: int, kind: int, peer: int, comm: int, stream: int) -> int:
        with self._lock:
            self.calls.append("op")
            here = self.comms[comm]
            assert kind == 1 and peer == 1 - here.rank and not here.aborted
            here.stream = stream
            here.ops.append((address, num_bytes))
            there = next((c for c in self.comms.values() if c.pair == here.pair and c is not here), None)
            while there is not None and here.ops and there.ops and not self.stuck:
                one, other = here.ops.pop(0), there.ops.pop(0)
                assert one[1] == other[1]
                sent, received = (one, other) if here.rank == 0 else (other, one)
                ctypes.memmove(received[0], sent[0], one[1])
            return 7

    def _abort(self, comm: int) -> int:
        with self._lock:
            self.calls.append("abort")
            assert not self.comms[comm].aborted
            self.comms[comm].aborted = True
            self.comms[comm].ops.clear()
            return 0


class _FakeStream:
    def __init__(self, nccl: FakeNccl, handle: int) -> None:
        self._nccl = nccl
        self.handle = handle

    def mark(self) -> Callable[[], bool]:
        return lambda: self._nccl.is_idle(self.handle)


class FakeGpu:
    """Host memory; a handle is known to whoever has this object. Counts what is not given back."""

    def __init__(self, nccl: FakeNccl | None = None, sees_all_as_own: bool = True) -> None:
        self._sees_all_as_own = sees_all_as_own
        self._nccl = nccl or FakeNccl()
        self._numbers = itertools.count(1)
        self.memory: dict[int, Any] = {}
        self.handles: dict[bytes, int] = {}
        self.mapped: list[int] = []
        self.freed_while_mapped: list[int] = []

    def use(self) -> None:
        pass

    def allocate(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def stream(self) -> _FakeStream:
        return _FakeStream(self._nccl, self._nccl.new_stream())

    def shareable(self, num_bytes: int) -> int:
        buffer = (ctypes.c_ubyte * num_bytes)()
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def free(self, address: int) -> None:
        if address in self.mapped:
            self.freed_while_mapped.append(address)
        del self.memory[address]

    def export(self, address: int) -> bytes:
        handle = next(self._numbers).to_bytes(64, "little")
        self.handles[handle] = address
        return handle

    def map(self, handle: bytes) -> int:
        if handle not in self.handles:
            raise TransportError("no such handle")
        self.mapped.append(self.handles[handle])
        return self.handles[handle]

    def unmap(self, address: int) -> None:
        self.mapped.remove(address)

    def tensor(self, address: int, num_bytes: int) -> torch.Tensor:
        return torch.frombuffer(self.memory[address], dtype=torch.uint8)[:num_bytes]

    def is_own(self, _tensor: torch.Tensor) -> bool:
        return self._sees_all_as_own

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        to.copy_(source)
