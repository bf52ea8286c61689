"""What the GPU transports need of a GPU besides NCCL: memory, streams and completion, and CUDA IPC."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

import torch

from llumnix.engine.transport.base import TransportError
from llumnix.engine.transport.nccl_library import loaded_library

IPC_HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1


class Stream(Protocol):
    """A CUDA stream of one thread's own."""

    @property
    def handle(self) -> int:
        """cudaStream_t."""

    def mark(self) -> Callable[[], bool]:
        """Tells later whether all that the stream was given so far is done; never waits."""


class Gpu(Protocol):
    """One GPU, for the calling thread."""

    def use(self) -> None:
        """Makes it the calling thread's current device."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """Staging, uint8."""

    def stream(self) -> Stream:
        """A new stream."""

    def shareable(self, num_bytes: int) -> int:
        """Memory that other processes can map; its address, to be freed with `free`."""

    def free(self, address: int) -> None:
        """Gives shareable memory back."""

    def export(self, address: int) -> bytes:
        """The handle by which another process maps shareable memory."""

    def map(self, handle: bytes) -> int:
        """Another process's memory; its address here, until `unmap`."""

    def unmap(self, address: int) -> None:
        """Lets go of it."""

    def tensor(self, address: int, num_bytes: int) -> torch.Tensor:
        """A view of memory at an address, uint8, on whichever GPU has it; does not own it."""

    def is_own(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is on this GPU."""

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Also from another GPU of the node; has finished when it returns."""


class _TorchStream:
    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    @property
    def handle(self) -> int:
        handle: int = self._stream.cuda_stream
        return handle

    def mark(self) -> Callable[[], bool]:
        event = torch.cuda.Event()
        event.record(self._stream)
        done: Callable[[], bool] = event.query
        return done


class _IpcHandle(ctypes.Structure):
    """cudaIpcMemHandle_t."""

    _fields_ = [("reserved", ctypes.c_char * IPC_HANDLE_BYTES)]


class _Memory:
    """A device address as torch takes it."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


_POINTER = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "cudaGetErrorString": (ctypes.c_char_p, [ctypes.c_int]),
    "cudaMalloc": (ctypes.c_int, [ctypes.POINTER(_POINTER), ctypes.c_size_t]),
    "cudaFree": (ctypes.c_int, [_POINTER]),
    "cudaIpcGetMemHandle": (ctypes.c_int, [ctypes.POINTER(_IpcHandle), _POINTER]),
    "cudaIpcOpenMemHandle": (ctypes.c_int, [ctypes.POINTER(_POINTER), _IpcHandle, ctypes.c_uint]),
    "cudaIpcCloseMemHandle": (ctypes.c_int, [_POINTER]),
}


class CudaGpu:
    """A real one. Shareable memory comes from cudaMalloc: torch's allocator may use what IPC cannot share."""

    def __init__(self, device: torch.device, runtime: Any | None = None) -> None:
        """`runtime`: a loaded libcudart, or what has its functions; by default the one torch has loaded."""
        self._device = device
        library = runtime if runtime is not None else _load_runtime()
        self._calls = {}
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            self._calls[name] = function

    def use(self) -> None:
        """See Gpu."""
        torch.cuda.set_device(self._device)

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """See Gpu."""
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def stream(self) -> Stream:
        """See Gpu."""
        return _TorchStream(self._device)

    def shareable(self, num_bytes: int) -> int:
        """See Gpu."""
        pointer = _POINTER()
        self._call("cudaMalloc", ctypes.byref(pointer), num_bytes)
        return _address(pointer, "cudaMalloc")

    def free(self, address: int) -> None:
        """See Gpu."""
        self._call("cudaFree", address)

    def export(self, address: int) -> bytes:
        """See Gpu."""
        handle = _IpcHandle()
        self._call("cudaIpcGetMemHandle", ctypes.byref(handle), address)
        return bytes(memoryview(handle))

    def map(self, handle: bytes) -> int:
        """See Gpu."""
        if len(handle) != IPC_HANDLE_BYTES:
            raise TransportError(f"the peer's CUDA IPC handle has {len(handle)} bytes.")
        pointer = _POINTER()
        opened = _IpcHandle.from_buffer_copy(handle)
        self._call("cudaIpcOpenMemHandle", ctypes.byref(pointer), opened, _LAZY_PEER_ACCESS)
        return _address(pointer, "cudaIpcOpenMemHandle")

    def unmap(self, address: int) -> None:
        """See Gpu."""
        self._call("cudaIpcCloseMemHandle", address)

    def tensor(self, address: int, num_bytes: int) -> torch.Tensor:
        """See Gpu."""
        view = torch.as_tensor(_Memory(address, num_bytes), device="cuda")
        if view.data_ptr() != address:
            raise TransportError("memory of a GPU that this process does not see cannot be used.")
        return view

    def is_own(self, tensor: torch.Tensor) -> bool:
        """See Gpu."""
        return tensor.device.index == (self._device.index or 0)

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """See Gpu."""
        to.copy_(source)
        torch.cuda.current_stream(source.device).synchronize()
        torch.cuda.current_stream(to.device).synchronize()

    def _call(self, name: str, *arguments: Any) -> None:
        result = self._calls[name](*arguments)
        if result:
            text = self._calls["cudaGetErrorString"](result)
            raise TransportError(f"{name} failed: {text.decode(errors='replace')} ({result}).")


def _address(pointer: ctypes.c_void_p, call: str) -> int:
    if not pointer.value:
        raise TransportError(f"{call} gave no address.")
    return pointer.value


def _load_runtime() -> Any:
    torch.cuda.init()  # loads it
    path = loaded_library("libcudart") or "libcudart.so"
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise TransportError(f"the CUDA runtime cannot be loaded: {error}.") from error
