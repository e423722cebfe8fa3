"""Carries batches from a worker process to its parent: arrays and bytes through shared memory, the rest as a message.

A worker owns a few slots of memory and fills them in turn; the parent copies a batch out when it gets it, and asks for
no more batches ahead than there are slots, so a slot is free when its turn comes. Memory that is mapped once costs 4 µs
for 20 kB; a pipe costs 10 to 14, new memory for every batch 16 for its pages. Slots are anonymous files, passed by
descriptor: they have no names that a killed process could leave behind.
"""

from __future__ import annotations

import mmap
import os
import pickle
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from dataengine.errors import ConfigError

_ALIGN = 64  # what AVX-512 loads at once
_MIN_BYTES = 256  # smaller ones cost less in the message
_MIN_SLOT_BYTES = 2**20
_HEADER = struct.Struct("<qqq")  # number of the message, slot or -1, bytes of the slot if it is new


class Unreadable(Exception):
    """Message `number` came whole, and cannot be made into what it was."""

    def __init__(self, number: int, why: Exception) -> None:
        super().__init__(f"message {number}: {why!r}")
        self.number, self.why = number, why


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


class _NewSlot(NamedTuple):
    """A slot that the parent has not mapped yet."""

    descriptor: int
    nbytes: int


class Sender:
    """The worker's end."""

    def __init__(self, connection: Connection, num_slots: int) -> None:
        self._connection = connection
        self._slots: list[mmap.mmap | None] = [None] * num_slots
        self._turn = 0

    def send(self, number: int, value: Any) -> None:
        """Send `value` as message `number`. Raises BrokenPipeError or ConnectionResetError when the parent is gone."""
        packer = _Packer()
        message = reduction.ForkingPickler.dumps(packer.pack(value))
        place, new = (-1, None) if not packer.nbytes else self._filled(packer)
        try:
            self._connection.send_bytes(_HEADER.pack(number, place, 0 if new is None else new.nbytes))
            self._connection.send_bytes(message)
            if new is not None:
                with socket_of(self._connection) as end:
                    socket.send_fds(end, [b"\0"], [new.descriptor])
        finally:
            if new is not None:
                os.close(new.descriptor)

    def _filled(self, packer: _Packer) -> tuple[int, _NewSlot | None]:
        """The slot, if need be a new one, that holds what was packed."""
        place = self._turn % len(self._slots)
        slot, new = self._slots[place], None
        if slot is None or len(slot) < packer.nbytes:
            slot, new = self._renew(place, packer.nbytes)
        with memoryview(slot) as memory:
            for offset, piece in packer.pieces:
                memory[offset : offset + len(piece)] = piece
        self._turn += 1
        return place, new

    def _renew(self, place: int, nbytes: int) -> tuple[mmap.mmap, _NewSlot]:
        """A larger slot."""
        nbytes = max(_MIN_SLOT_BYTES, nbytes + nbytes // 8)
        descriptor = os.memfd_create("dataengine-batches", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, nbytes)
        slot = self._slots[place] = mmap.mmap(descriptor, nbytes)
        return slot, _NewSlot(descriptor, nbytes)


class Receiver:
    """The parent's end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._slots: dict[int, mmap.mmap] = {}

    def receive(self) -> tuple[int, Any]:
        """A message's number, and what was sent, copied out of the shared memory.

        Raises EOFError or OSError when the worker has died, Unreadable when only its message cannot be had, ConfigError
        when too many files are open.
        """
        number, place, new_bytes = _HEADER.unpack(self._connection.recv_bytes())
        content = self._connection.recv_bytes()
        if new_bytes:
            self._slots[place] = self._mapped(new_bytes)
        try:
            message = pickle.loads(content)  # noqa: S301 - a worker's own
            return number, message if place < 0 else _unpack(message, self._slots[place])
        except Exception as error:
            raise Unreadable(number, error) from error

    def _mapped(self, nbytes: int) -> mmap.mmap:
        with socket_of(self._connection) as end:
            descriptors = socket.recv_fds(end, 1, 1)[1]
        if not descriptors:
            raise ConfigError(
                "workers: no file may be opened for another batch, of which each that lies ready takes one; raise the "
                "limit (ulimit -n), or lower num_workers or prefetch_batches"
            )
        try:
            return mmap.mmap(descriptors[0], nbytes)
        finally:
            os.close(descriptors[0])


@contextmanager
def socket_of(connection: Connection) -> Iterator[socket.socket]:
    """The socket that a connection is, for what connections cannot do."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setblocking(True)  # a default time-out would make the connection, too, one that does not wait
        yield end


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
        if type(value) is list:
            if value and type(value[0]) is bytes and all(type(of) is bytes for of in value):
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
        array = np.ascontiguousarray(value.resolve_neg().numpy() if is_tensor else value)
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
    if type(value) is list and value and type(value[0]) is _Array:
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
    """Whether it is worth a place in a slot, and dtype, shape and bytes are all there is to it.

    Kinds of one's own (masked arrays, memory maps, torchvision's boxes, parameters) go as messages, whole.
    """
    if type(value) is np.ndarray:
        in_rows = value.flags.c_contiguous or not value.flags.f_contiguous
        return value.nbytes >= _MIN_BYTES and value.dtype.kind in "biufcmMSU" and in_rows
    torch = sys.modules.get("torch")
    if torch is None or type(value) is not torch.Tensor or value.requires_grad:
        return False
    # bfloat16 and quantised tensors have no NumPy counterpart; they go as messages, too.
    has_array = value.layout is torch.strided and value.device.type == "cpu" and value.dtype in _numpy_dtypes(torch)
    return has_array and value.nbytes >= _MIN_BYTES and value.is_contiguous()


def _numpy_dtypes(torch: Any) -> frozenset[Any]:
    names = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")
    return frozenset(getattr(torch, name) for name in names)
