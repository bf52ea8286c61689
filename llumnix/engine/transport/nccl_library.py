"""The few calls of NCCL that two ranks need, so that no call can block for ever.

Structures and numbers are those of nccl.h: a configuration as of 2.27 is taken by every later version, which
reads the fields that the declared size and version say are there.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from llumnix.engine.transport.base import TransportError

OLDEST_VERSION = 22700
_CONFIG_VERSION = 22700
_CONFIG_MAGIC = 0xCAFEBEEF
_UNDEFINED = -(2**31)

SUCCESS = 0
IN_PROGRESS = 7
_UINT8 = 1
UNIQUE_ID_BYTES = 128


class UniqueId(ctypes.Structure):
    """ncclUniqueId."""

    _fields_ = [("internal", ctypes.c_byte * UNIQUE_ID_BYTES)]


class Config(ctypes.Structure):
    """ncclConfig_t of 2.27."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("magic", ctypes.c_uint),
        ("version", ctypes.c_uint),
        ("blocking", ctypes.c_int),
        ("cgaClusterSize", ctypes.c_int),
        ("minCTAs", ctypes.c_int),
        ("maxCTAs", ctypes.c_int),
        ("netName", ctypes.c_char_p),
        ("splitShare", ctypes.c_int),
        ("trafficClass", ctypes.c_int),
        ("commName", ctypes.c_char_p),
        ("collnetEnable", ctypes.c_int),
        ("CTAPolicy", ctypes.c_int),
        ("shrinkShare", ctypes.c_int),
        ("nvlsCTAs", ctypes.c_int),
    ]


def nonblocking_config(max_ctas: int) -> Config:
    """No call waits for the peer, and a transfer takes few of the GPU's processors from the model."""
    config = Config()
    for name, kind, *_ in Config._fields_:
        if kind is ctypes.c_int:
            setattr(config, name, _UNDEFINED)
    config.size = ctypes.sizeof(Config)
    config.magic = _CONFIG_MAGIC
    config.version = _CONFIG_VERSION
    config.blocking = 0
    config.minCTAs = 1
    config.maxCTAs = max_ctas
    return config


_COMM, _STREAM, _RESULT = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ncclGetVersion": (_RESULT, [ctypes.POINTER(ctypes.c_int)]),
    "ncclGetErrorString": (ctypes.c_char_p, [_RESULT]),
    "ncclGetUniqueId": (_RESULT, [ctypes.POINTER(UniqueId)]),
    "ncclCommInitRankConfig": (
        _RESULT,
        [ctypes.POINTER(_COMM), ctypes.c_int, UniqueId, ctypes.c_int, ctypes.POINTER(Config)],
    ),
    "ncclCommGetAsyncError": (_RESULT, [_COMM, ctypes.POINTER(_RESULT)]),
    "ncclSend": (_RESULT, [ctypes.c_void_p, ctypes.c_size_t, _RESULT, ctypes.c_int, _COMM, _STREAM]),
    "ncclRecv": (_RESULT, [ctypes.c_void_p, ctypes.c_size_t, _RESULT, ctypes.c_int, _COMM, _STREAM]),
    "ncclCommAbort": (_RESULT, [_COMM]),
}


class NcclLibrary:
    """Every call but `abort` may be answered by "in progress": `is_settled` says when it is done.

    A communicator is used by one thread at a time. Raises TransportError on any error of NCCL's.
    """

    def __init__(self, library: Any) -> None:
        """`library`: a loaded libnccl, or what has its functions."""
        self._calls = {}
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            self._calls[name] = function
        version = ctypes.c_int()
        self._done(self._calls["ncclGetVersion"](ctypes.byref(version)), "ncclGetVersion")
        self.version = version.value
        if self.version < OLDEST_VERSION:
            raise TransportError(f"NCCL {self.version} is too old: at least {OLDEST_VERSION} is needed.")

    @classmethod
    def load(cls) -> NcclLibrary:
        """The library that torch or vLLM has loaded, else the system's."""
        path = os.environ.get("VLLM_NCCL_SO_PATH") or loaded_library("libnccl.so") or "libnccl.so.2"
        try:
            return cls(ctypes.CDLL(path))
        except (OSError, AttributeError) as error:
            raise TransportError(f"NCCL cannot be loaded: {error}.") from error

    def unique_id(self) -> bytes:
        """What both ranks of a new communicator must be given."""
        unique_id = UniqueId()
        self._done(self._calls["ncclGetUniqueId"](ctypes.byref(unique_id)), "ncclGetUniqueId")
        return bytes(unique_id.internal)

    def init_rank(self, unique_id: bytes, rank: int, max_ctas: int) -> int:
        """Begins to make a communicator of two; returns its handle."""
        if len(unique_id) != UNIQUE_ID_BYTES:
            raise TransportError(f"the peer's NCCL id has {len(unique_id)} bytes.")
        comm, config = ctypes.c_void_p(), nonblocking_config(max_ctas)
        result = self._calls["ncclCommInitRankConfig"](
            ctypes.byref(comm), 2, UniqueId.from_buffer_copy(unique_id), rank, ctypes.byref(config)
        )
        self._begun(result, "ncclCommInitRankConfig")
        if not comm.value:
            raise TransportError("ncclCommInitRankConfig gave no communicator.")
        return comm.value

    def send(self, comm: int, address: int, num_bytes: int, peer: int, stream: int) -> None:
        """Begins to put a send on the stream."""
        result = self._calls["ncclSend"](address, num_bytes, _UINT8, peer, comm, stream)
        self._begun(result, "ncclSend")

    def receive(self, comm: int, address: int, num_bytes: int, peer: int, stream: int) -> None:
        """Begins to put a receive on the stream."""
        result = self._calls["ncclRecv"](address, num_bytes, _UINT8, peer, comm, stream)
        self._begun(result, "ncclRecv")

    def is_settled(self, comm: int) -> bool:
        """Whether what was begun is done; raises TransportError once the communicator has failed."""
        state = ctypes.c_int()
        self._done(self._calls["ncclCommGetAsyncError"](comm, ctypes.byref(state)), "ncclCommGetAsyncError")
        if state.value not in (SUCCESS, IN_PROGRESS):
            raise TransportError(f"NCCL's connection failed: {self._describe(state.value)}")
        return state.value == SUCCESS

    def abort(self, comm: int) -> None:
        """Ends what is under way and frees the communicator, without asking the peer."""
        self._begun(self._calls["ncclCommAbort"](comm), "ncclCommAbort")

    def _done(self, result: int, call: str) -> None:
        if result != SUCCESS:
            raise TransportError(f"{call} failed: {self._describe(result)}")

    def _begun(self, result: int, call: str) -> None:
        if result != IN_PROGRESS:
            self._done(result, call)

    def _describe(self, result: int) -> str:
        text = self._calls["ncclGetErrorString"](result)
        return f"{text.decode(errors='replace') if text else 'unknown error'} ({result})"


def loaded_library(name: str) -> str | None:
    """The path of a shared library that this process has mapped already, by the start of its file name."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")
        if path[1] and Path(path[2]).name.startswith(name):
            return "/" + path[2]
    return None
