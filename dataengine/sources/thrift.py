"""Thrift's compact protocol: the bytes of one struct in, its fields by number out.

Written for Parquet from strangers: every read stays inside the bytes given, nesting is bounded, and whatever is
cut or of no known type is a ThriftFault. It knows no Parquet. Format: thrift/doc/specs/thrift-compact-protocol.md of
Apache Thrift.
"""

from __future__ import annotations

MAX_DEPTH = 8
"""Of structs and lists within each other; a Parquet footer needs six."""

_MAX_VARINT_BYTES = 10
_STOP, _TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(13)
_INTEGERS = (_I16, _I32, _I64)

Fields = dict[int, object]
"""Field number → int, bool, bytes, list, or the fields of a struct; maps and doubles are passed over (None)."""


class ThriftFault(Exception):
    """The bytes are no struct, or end within one."""


class Truncated(ThriftFault):
    """The bytes end within the struct: more of them may mend it."""


def read_struct(content: bytes) -> tuple[Fields, int]:
    """The struct that `content` begins with, and how many bytes it takes. Raises ThriftFault, Truncated."""
    reader = _Reader(content)
    return reader.struct(0), reader.position


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.position = 0

    def struct(self, depth: int) -> Fields:
        if depth > MAX_DEPTH:
            raise ThriftFault(f"nested more than {MAX_DEPTH} deep")
        fields: Fields = {}
        number = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            number = number + delta if delta else self._integer()
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> object:
        if kind in _INTEGERS:
            return self._integer()
        if kind in (_TRUE, _FALSE, _BYTE):  # within a list, a boolean is a byte of its own
            return self._byte()
        if kind == _BINARY:
            return self._take(self._varint())
        if kind == _STRUCT:
            return self.struct(depth)
        if kind in (_LIST, _SET):
            return self._list(depth)
        if kind == _DOUBLE:
            self._take(8)
            return None
        if kind == _MAP:
            self._map(depth)
            return None
        raise ThriftFault(f"no type has the number {kind}")

    def _list(self, depth: int) -> list[object]:
        self._refuse_depth(depth)
        head = self._byte()
        length = head >> 4 if head >> 4 < 15 else self._varint()
        # No element is shorter than a byte, so a long list of nothing ends with the bytes there are.
        return [self._value(head & 15, depth + 1) for _ in range(length)]

    def _map(self, depth: int) -> None:
        self._refuse_depth(depth)
        length = self._varint()
        kinds = self._byte() if length else 0
        for _ in range(length):
            self._value(kinds >> 4, depth + 1)
            self._value(kinds & 15, depth + 1)

    def _refuse_depth(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ThriftFault(f"nested more than {MAX_DEPTH} deep")

    def _integer(self) -> int:
        """A zigzag varint."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = 0
        for place in range(_MAX_VARINT_BYTES):
            byte = self._byte()
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return value
        raise ThriftFault(f"a number of more than {_MAX_VARINT_BYTES} bytes")

    def _byte(self) -> int:
        if self.position >= len(self._content):
            raise Truncated(f"ends within itself, after {self.position} bytes")
        byte = self._content[self.position]
        self.position += 1
        return byte

    def _take(self, nbytes: int) -> bytes:
        end = self.position + nbytes
        if end > len(self._content):
            raise Truncated(f"ends within a field of {nbytes} bytes, after {self.position}")
        taken = self._content[self.position : end]
        self.position = end
        return taken
