"""Carries batches from a worker process to its parent: arrays and bytes through shared memory, the rest as a message.

A worker owns a few slots of memory and fills them in turn; the parent copies a batch out when it gets it, and asks for
no more batches ahead than there are slots, so a slot is free when its turn comes. Memory that is mapped once costs 4 µs
for 20 kB; a pipe costs 10 to 14, new memory for every batch 16 for its pages. Slots are anonymous files, passed by
descriptor: they have no names that a killed process could leave behind.
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
_MIN_SLOT_BYTES = 2**20


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


class Sender:
    """The worker's end."""

    def __init__(self, connection: Connection, num_slots: int) -> None:
        self._connection = connection
        self._slots: list[mmap.mmap | None] = [None] * num_slots
        self._turn = 0

    def send(self, value: Any) -> None:
        """Send `value`. Raises BrokenPipeError or ConnectionResetError when the parent is gone."""
        packer = _Packer()
        message = packer.pack(value)
        if not packer.nbytes:
            self._connection.send((message, None, 0))
            return
        number = self._turn % len(self._slots)
        slot, new = self._slots[number], None
        if slot is None or len(slot) < packer.nbytes:
            slot, new = self._renew(number, packer.nbytes)
        with memoryview(slot) as memory:
            for offset, piece in packer.pieces:
                memory[offset : offset + len(piece)] = piece
        self._turn += 1
        try:
            self._connection.send((message, number, 0 if new is None else len(slot)))
            if new is not None:
                reduction.send_handle(self._connection, new, None)
        finally:
            if new is not None:
                os.close(new)

    def _renew(self, number: int, nbytes: int) -> tuple[mmap.mmap, int]:
        """A larger slot, and its descriptor."""
        nbytes = max(_MIN_SLOT_BYTES, nbytes + nbytes // 8)
        descriptor = os.memfd_create("dataengine-batches", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, nbytes)
        slot = self._slots[number] = mmap.mmap(descriptor, nbytes)
        return slot, descriptor


class Receiver:
    """The parent's end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slots: dict[int, mmap.mmap] = {}

    def receive(self) -> Any:
        """What was sent, copied out of the shared memory. Raises EOFError or OSError when the worker has died."""
        message, number, new_bytes = self._connection.recv()
        if number is None:
            return message
        if new_bytes:
            descriptor = reduction.recv_handle(self._connection)
            try:
                self._slots[number] = mmap.mmap(descriptor, new_bytes)
            finally:
                os.close(descriptor)
        return _unpack(message, self._slots[number])


class _Packer:
    """Lays out the large parts of a batch; `pieces` are (offset, bytes-like)."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, Any]] = []
        self.nbytes = 0

    def pack(self, value: Any) -> Any:
        """`value` with what is large replaced by where it will lie."""
        if type(value) is dict:  # as tuples, a kind of one's own comes back as it was
            return {name: self.pack(of) for name, of in value.items()}
        if type(value) is tuple:
            return tuple(self.pack(of) for of in value)
        if isinstance(value, list):
            if value and isinstance(value[0], bytes) and all(isinstance(of, bytes) for of in value):
                # Nothing but empty ones take no slot, without which the parent unpacks nothing.
                return self._bytes(value) if any(value) else value
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


def _unpack(value: Any, memory: mmap.mmap) -> Any:
    if isinstance(value, _Array):
        return _array(value, memory)
    if isinstance(value, _Pieces):
        found, begin = [], value.offset
        for size in value.sizes:
            found.append(memory[begin : begin + size])
            begin += size
        return found
    if type(value) is dict:
        return {name: _unpack(of, memory) for name, of in value.items()}
    if type(value) is tuple:
        return tuple(_unpack(of, memory) for of in value)
    if isinstance(value, list) and value and isinstance(value[0], _Array):
        return [_unpack(of, memory) for of in value]
    return value


def _array(packed: _Array, memory: mmap.mmap) -> Any:
    dtype = np.dtype(packed.dtype)
    count = int(np.prod(packed.shape, dtype=np.int64))
    array = np.frombuffer(memory, dtype, count, packed.offset).reshape(packed.shape).copy()
    if not packed.is_tensor:
        return array
    import torch

    return torch.from_numpy(array)


def _is_large(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.nbytes >= _MIN_BYTES and value.dtype.kind not in "OV"  # which their text does not tell in full
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        return False
    # bfloat16 and quantised tensors have no NumPy counterpart; they go as messages.
    return value.nbytes >= _MIN_BYTES and value.dtype in _numpy_dtypes(torch)


def _numpy_dtypes(torch: Any) -> frozenset[Any]:
    names = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")
    return frozenset(getattr(torch, name) for name in names)
