"""Carries a batch from a worker process to its parent: arrays and bytes through shared memory, the rest as a message.

The memory is an anonymous file, passed by descriptor: it has no name that a killed process could leave behind, and it
goes when the last array over it does.
"""

from __future__ import annotations

import mmap
import os
import sys
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

_ALIGN = 64  # what AVX-512 loads at once
_MIN_BYTES = 256  # smaller ones cost less in the message


@dataclass(frozen=True)
class _Array:
    """An array that lies at `offset`; torch's come back as tensors."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    is_tensor: bool


@dataclass(frozen=True)
class _Pieces:
    """A list of bytes that lie one after another from `offset` on."""

    sizes: list[int]
    offset: int


class _Packer:
    """Lays out the large parts of a batch; `pieces` are (offset, bytes-like)."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, Any]] = []
        self.nbytes = 0

    def pack(self, value: Any) -> Any:
        """`value` with what is large replaced by where it will lie."""
        if isinstance(value, dict):
            return {name: self.pack(of) for name, of in value.items()}
        if type(value) is tuple:
            return tuple(self.pack(of) for of in value)
        if isinstance(value, list):
            if value and isinstance(value[0], bytes) and all(isinstance(of, bytes) for of in value):
                return self._bytes(value)
            if value and _is_large(value[0]):
                return [self.pack(of) for of in value]
            return value
        return self._array(value) if _is_large(value) else value

    def _bytes(self, value: list[bytes]) -> _Pieces:
        begin = self._align()
        for piece in value:
            self.pieces.append((self.nbytes, piece))
            self.nbytes += len(piece)
        return _Pieces([len(piece) for piece in value], begin)

    def _array(self, value: Any) -> _Array:
        is_tensor = not isinstance(value, np.ndarray)
        array = np.ascontiguousarray(value.detach().cpu().numpy() if is_tensor else value)
        begin = self._align()
        self.pieces.append((begin, array.reshape(-1).view(np.uint8).data))
        self.nbytes += array.nbytes
        return _Array(array.dtype.str, array.shape, begin, is_tensor)

    def _align(self) -> int:
        self.nbytes += -self.nbytes % _ALIGN
        return self.nbytes


def send(connection: Connection, value: Any) -> None:
    """Send `value` to the process at the other end."""
    packer = _Packer()
    message = packer.pack(value)
    connection.send((message, packer.nbytes))
    if not packer.nbytes:
        return
    descriptor = os.memfd_create("dataengine-batch", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, packer.nbytes)
        _write(descriptor, packer.pieces)
        reduction.send_handle(connection, descriptor, None)
    finally:
        os.close(descriptor)


def receive(connection: Connection) -> Any:
    """What `send` sent; arrays lie in the shared memory, writable, and bytes are copied out of it.

    Raises EOFError or OSError when the other end has died.
    """
    message, nbytes = connection.recv()
    if not nbytes:
        return message
    descriptor = reduction.recv_handle(connection)
    try:
        memory = mmap.mmap(descriptor, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(descriptor)
    return _unpack(message, memory)


def _write(descriptor: int, pieces: list[tuple[int, Any]]) -> None:
    # Written, not mapped: a worker that maps new memory pays a fault for every page. 1,024 buffers a call at most.
    batch: list[Any] = []
    begin = position = 0
    for offset, piece in pieces:
        if offset != position or len(batch) == 1024:
            _write_all(descriptor, batch, begin)
            batch, begin, position = [], offset, offset
        batch.append(piece)
        position += len(piece)
    _write_all(descriptor, batch, begin)


def _write_all(descriptor: int, buffers: list[Any], offset: int) -> None:
    wanted = sum(len(buffer) for buffer in buffers)
    written = os.pwritev(descriptor, buffers, offset) if buffers else 0
    if written != wanted:  # a signal, or no memory: what is left goes in one piece
        rest = memoryview(b"".join(buffers))[written:]
        while rest:
            rest = rest[os.pwrite(descriptor, rest, offset + wanted - len(rest)) :]


def _unpack(value: Any, memory: mmap.mmap) -> Any:
    if isinstance(value, _Array):
        return _array(value, memory)
    if isinstance(value, _Pieces):
        found, begin = [], value.offset
        for size in value.sizes:
            found.append(memory[begin : begin + size])
            begin += size
        return found
    if isinstance(value, dict):
        return {name: _unpack(of, memory) for name, of in value.items()}
    if type(value) is tuple:
        return tuple(_unpack(of, memory) for of in value)
    if isinstance(value, list) and value and isinstance(value[0], _Array):
        return [_unpack(of, memory) for of in value]
    return value


def _array(packed: _Array, memory: mmap.mmap) -> Any:
    dtype = np.dtype(packed.dtype)
    count = int(np.prod(packed.shape, dtype=np.int64))
    array = np.frombuffer(memory, dtype, count, packed.offset).reshape(packed.shape)
    if not packed.is_tensor:
        return array
    import torch

    return torch.from_numpy(array)


def _is_large(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.nbytes >= _MIN_BYTES and not value.dtype.hasobject
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return False
    # bfloat16 and quantised tensors have no NumPy counterpart; they go as messages.
    return value.nbytes >= _MIN_BYTES and value.dtype in _numpy_dtypes(torch)


def _numpy_dtypes(torch: Any) -> frozenset[Any]:
    names = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")
    return frozenset(getattr(torch, name) for name in names)
