"""A name server on loopback that says exactly what a test wants said, record by record."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from dnslib import AAAA, CNAME, QTYPE, RCODE, RR, A, DNSRecord

_DATA = {"A": A, "AAAA": AAAA, "CNAME": CNAME}


@dataclass(frozen=True)
class Reply:
    """What is said of a name: records as "A 10.0.0.1" or "CNAME other.test", a code of failure, or nothing at all."""

    records: tuple[str, ...] = ()
    code: str = "NOERROR"
    ttl: int = 0
    after_seconds: float | None = 0.0
    """None: never."""
    is_whole: bool = True
    """Whether what a CNAME leads to is said as well."""
    over_tcp: bool = False
    """Whether it is said over TCP only; over UDP, that it is cut off."""


def says(*records: str, ttl: int = 0, after_seconds: float = 0.0) -> Reply:
    return Reply(records, ttl=ttl, after_seconds=after_seconds)


NXDOMAIN = Reply(code="NXDOMAIN")
SERVFAIL = Reply(code="SERVFAIL")
SILENCE = Reply(after_seconds=None)

Zone = Mapping[str, Reply | Sequence[Reply]]
"""Name → what is said, or what is said of each type in turn, the last for ever; other names do not exist."""


class NameServer(asyncio.DatagramProtocol):
    """Answers A and AAAA; a chain of CNAMEs within the zone comes whole with its end, as recursive servers send it."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.questions: list[tuple[str, str]] = []
        self.address = ""

    @property
    def asked(self) -> Counter[str]:
        """How often each name was asked for its A records."""
        return Counter(name for name, kind in self.questions if kind == "A")

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, packet: bytes, peer: Any) -> None:
        self.reply_to(packet, lambda answer: self._transport.sendto(answer, peer))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one question over TCP."""
        packet = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        self.reply_to(packet, lambda answer: writer.write(len(answer).to_bytes(2, "big") + answer), is_tcp=True)
        await writer.drain()
        writer.close()

    def reply_to(self, packet: bytes, send: Callable[[bytes], None], *, is_tcp: bool = False) -> None:
        query = DNSRecord.parse(packet)
        name, kind = str(query.q.qname).rstrip(".").lower(), QTYPE[query.q.qtype]
        self.questions.append((name, kind))
        reply = self._reply(name, kind)
        if reply.after_seconds is None:
            return
        answer = query.reply()
        answer.header.rcode = getattr(RCODE, reply.code)
        answer.header.tc = int(reply.over_tcp and not is_tcp)
        for record in () if answer.header.tc else self._records(name, kind, reply):
            answer.add_answer(record)
        if reply.after_seconds:
            asyncio.get_running_loop().call_later(reply.after_seconds, send, answer.pack())
        else:
            send(answer.pack())

    def _reply(self, name: str, kind: str) -> Reply:
        reply = self.zone.get(name, NXDOMAIN)
        if isinstance(reply, Reply):
            return reply
        return reply[min(max(self.questions.count((name, kind)), 1), len(reply)) - 1]

    def _records(self, name: str, kind: str, reply: Reply, depth: int = 0) -> list[RR]:
        found: list[RR] = []
        for record in reply.records:
            type_name, value = record.split(" ")
            if type_name in (kind, "CNAME"):
                found.append(RR(name, getattr(QTYPE, type_name), rdata=_DATA[type_name](value), ttl=reply.ttl))
            if type_name == "CNAME" and value in self.zone and reply.is_whole and depth < 20:
                found += self._records(value, kind, self._reply(value, kind), depth + 1)
        return found


@asynccontextmanager
async def name_server(zone: Zone, host: str = "127.0.0.1") -> AsyncIterator[NameServer]:
    server = NameServer(zone)
    # TCP first: far more of its ports are taken, by connections that are over.
    async with await asyncio.start_server(server.serve, host, 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        server.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: server, (host, port))
        try:
            yield server
        finally:
            transport.close()
