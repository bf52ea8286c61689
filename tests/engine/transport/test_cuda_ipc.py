"""Shared device memory: ctypes signatures, and that nothing is freed while another process may map it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from llumnix.engine.transport import TransportError
from llumnix.engine.transport.cuda_ipc import KeptMemory
from llumnix.engine.transport.gpu import CudaGpu
from llumnix.engine.transport.node import host_id, is_running, process_name
from tests.engine.transport.fakes import FakeGpu


class _Handle(ctypes.Structure):
    """cudaIpcMemHandle_t."""

    _fields_ = [("reserved", ctypes.c_char * 64)]


class _FakeRuntime:
    """libcudart's functions; memory of this process, handles with zeros in them."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []
        integer, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
        self.result = 0
        text = ctypes.create_string_buffer(b"out of memory")
        self._kept = text
        to_pointer, to_handle = ctypes.POINTER(pointer), ctypes.POINTER(_Handle)
        self.cudaGetErrorString = ctypes.CFUNCTYPE(pointer, integer)(lambda _: ctypes.addressof(text))
        self.cudaMalloc = ctypes.CFUNCTYPE(integer, to_pointer, size)(self._malloc)
        self.cudaFree = ctypes.CFUNCTYPE(integer, pointer)(lambda p: self._note("free", p))
        self.cudaIpcGetMemHandle = ctypes.CFUNCTYPE(integer, to_handle, pointer)(self._export)
        self.cudaIpcOpenMemHandle = ctypes.CFUNCTYPE(integer, to_pointer, _Handle, ctypes.c_uint)(self._map)
        self.cudaIpcCloseMemHandle = ctypes.CFUNCTYPE(integer, pointer)(lambda p: self._note("close", p))

    def _note(self, *entry: object) -> int:
        self.log.append(entry)
        return self.result

    def _malloc(self, address: ctypes.Array[ctypes.c_void_p], num_bytes: int) -> int:
        if not self.result:
            address[0] = 0x7FAABBCCDD00  # type: ignore[call-overload]
        return self._note("malloc", num_bytes)

    def _export(self, handle: ctypes.Array[_Handle], address: int) -> int:
        ctypes.memmove(handle, b"\x00\x01" * 32, 64)
        return self._note("export", address)

    def _map(self, address: ctypes.Array[ctypes.c_void_p], handle: _Handle, flags: int) -> int:
        address[0] = 0x7F0011223300  # type: ignore[call-overload]
        return self._note("map", ctypes.string_at(ctypes.addressof(handle), 64), flags)


def test_calls_reach_the_cuda_runtime_with_whole_addresses_and_handles() -> None:
    runtime = _FakeRuntime()
    gpu = CudaGpu(torch.device("cuda", 0), runtime)
    own = gpu.shareable(1 << 33)
    handle = gpu.export(own)
    assert handle == b"\x00\x01" * 32
    mapped = gpu.map(handle)
    gpu.unmap(mapped)
    gpu.free(own)
    assert runtime.log == [
        ("malloc", 1 << 33),
        ("export", 0x7FAABBCCDD00),
        ("map", handle, 1),
        ("close", 0x7F0011223300),
        ("free", 0x7FAABBCCDD00),
    ]


def test_an_error_of_the_cuda_runtime_is_named() -> None:
    runtime = _FakeRuntime()
    gpu = CudaGpu(torch.device("cuda", 0), runtime)
    runtime.result = 2
    with pytest.raises(TransportError, match=r"cudaMalloc failed: out of memory \(2\)"):
        gpu.shareable(1)


def test_memory_of_a_broken_connection_is_kept_until_the_process_that_maps_it_is_gone() -> None:
    gpu, kept = FakeGpu(), KeptMemory()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as reader:
        address = gpu.shareable(100)
        kept.keep(address, process_name(reader.pid))
        kept.free_unread(gpu)
        assert address in gpu.memory
        assert reader.stdin is not None
        reader.stdin.close()
        reader.wait()
    kept.free_unread(gpu)
    assert address not in gpu.memory
    kept.free_unread(gpu)


def test_a_process_is_told_from_a_later_one_of_the_same_number() -> None:
    pid, _, start = process_name(os.getpid()).partition(b"/")
    assert is_running(process_name(os.getpid()))
    assert not is_running(b"%s/%d" % (pid, int(start) + 1))
    assert host_id() == host_id()
