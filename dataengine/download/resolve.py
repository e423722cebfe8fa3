"""Resolves host names for a downloader, to addresses it may connect to.

In goes a name; out come its addresses, every one of them checked, or BlockedAddress, or OSError when DNS has
none. The checked addresses are the ones connected to, and they are kept, so a name cannot change its mind between
check and use. What is decided here: whom to ask, how long an answer holds, and that many who want one name ask
once. What makes an address refused is decided in guard.py; nothing here knows about HTTP.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from aiohttp.abc import AbstractResolver, ResolveResult

from dataengine.download.guard import BlockedAddress, canonical_host, literal_address, refused

if TYPE_CHECKING:
    from dataengine.config.download import FetchConfig, GuardConfig

MAX_NAMES = 100_000  # remembered at a time, in some 50 MB
_NEGATIVE_SHARE = 0.1  # of the time that answers are kept, for names that do not exist
_FAILURE_SECONDS = 1.0  # what RFC 9520 wants failures kept at least; more, and trying again would be in vain
_DNS_THREADS = 32  # getaddrinfo blocks for seconds on dead names; asyncio's own pool has a few threads per core
_MAX_ALIASES = 8  # links in a chain of CNAMEs; BIND follows 11, and real ones are shorter than 5
_MAX_ADDRESSES = 64  # of a name; a hostile answer holds 4,000, and to check one takes 25 us
_TRIES = 2  # UDP loses packets
_MAX_CHANNEL_NAMES = 5000  # c-ares has a cache of its own, without a bound: 2.4 KB a name
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class NoSuchName(OSError):
    """DNS says that a name has no addresses."""


class _LookUp(Protocol):
    async def addresses(self, name: str) -> Sequence[str]:
        """All addresses of `name`, at least one. Raises NoSuchName, or OSError when there is no answer."""

    async def close(self) -> None:
        """Gives up what is under way."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of a name: its addresses, or why there are none."""

    addresses: tuple[tuple[str, socket.AddressFamily], ...] = ()
    blocked: str | None = None
    """The first address that is refused."""
    fault: str | None = None
    is_absent: bool = False
    """Whether DNS says that there is no such name, rather than nothing."""
    until: float = 0.0
    """By the clock of the event loop."""


class GuardedResolver(AbstractResolver):
    """Resolves names as `guard` allows, asking the servers and keeping the answers that `fetch` says.

    Make, use and close it in one event loop; `known` holds answers from earlier ones, by the same clock. Time-to-live
    fields of DNS are ignored: a stranger's zero would have every URL ask again.
    """

    def __init__(self, guard: GuardConfig, fetch: FetchConfig, known: dict[str, Answer] | None = None) -> None:
        self._deny_networks = guard.deny_networks
        self._mapped = {canonical_host(name): _split_port(target) for name, target in guard.hosts.items()}
        self._exempt = self._mapped.keys() | {canonical_host(name) for name in guard.allow_hosts}
        self._cache_seconds = fetch.dns_cache_seconds
        self._look_up: _LookUp = (
            _NameServers(fetch.nameservers, fetch.connect_seconds) if fetch.nameservers else _System()
        )
        self._known = {} if known is None else known
        self._asked: dict[str, asyncio.Task[Answer]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Every address of `host`.

        Raises NoSuchName when DNS says that there is none, OSError when it says nothing, BlockedAddress when any of
        them is refused: a name that leads to a public and a private address is an attack or a mistake.
        """
        name = canonical_host(host)
        target, target_port = self._mapped.get(name, (name, port))
        answer = await self._answer(target)
        if answer.blocked is not None and name not in self._exempt:
            raise BlockedAddress(
                f"{host} leads to {answer.blocked}, which is not a public address; if it is yours, add {name} to "
                f"download.guard.allow_hosts"
            )
        found = [
            ResolveResult(hostname=host, host=address, port=target_port, family=kind, proto=0, flags=_NUMERIC)
            for address, kind in answer.addresses
            if family in (socket.AF_UNSPEC, kind)
        ]
        if not found:
            kind_of_fault = NoSuchName if answer.is_absent else OSError
            raise kind_of_fault(f"{host}: {answer.fault or 'no address of the family asked for'}")
        return found

    async def close(self) -> None:
        """Gives up what is being asked."""
        for asked in self._asked.values():
            asked.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)
        await self._look_up.close()

    async def _answer(self, name: str) -> Answer:
        known = self._known.get(name)
        if known is not None and known.until > asyncio.get_running_loop().time():
            return known
        asked = self._asked.get(name)
        if asked is None:
            asked = self._asked[name] = asyncio.create_task(self._ask(name))
            asked.add_done_callback(lambda _: self._asked.pop(name, None))
        # Shielded: others wait for the same answer when this one runs out of time.
        return await asyncio.shield(asked)

    async def _ask(self, name: str) -> Answer:
        loop = asyncio.get_running_loop()
        try:
            addresses = await self._addresses(name)
        except NoSuchName as error:
            until = loop.time() + self._cache_seconds * _NEGATIVE_SHARE
            answer = Answer(fault=str(error), is_absent=True, until=until)
        except OSError as error:
            seconds = min(_FAILURE_SECONDS, self._cache_seconds * _NEGATIVE_SHARE)
            answer = Answer(fault=str(error), until=loop.time() + seconds)
        else:
            answer = Answer(
                tuple((address, _family(address)) for address in addresses),
                next((address for address in addresses if refused(address, self._deny_networks)), None),
                until=loop.time() + self._cache_seconds,
            )
        self._remember(name, answer)
        return answer

    async def _addresses(self, name: str) -> Sequence[str]:
        literal = literal_address(name)
        if literal is not None:
            return [literal]
        if not name.isascii() or "\0" in name:
            raise NoSuchName(f"{name!r} cannot be a host name")
        return (await self._look_up.addresses(name))[:_MAX_ADDRESSES]

    def _remember(self, name: str, answer: Answer) -> None:
        self._known.pop(name, None)  # the oldest answer comes first
        if len(self._known) >= MAX_NAMES:
            del self._known[next(iter(self._known))]
        self._known[name] = answer


class _System:
    """Asks the system's resolver, with its hosts file, search list, patience and servers."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_DNS_THREADS, thread_name_prefix="dns")

    async def addresses(self, name: str) -> Sequence[str]:
        question = functools.partial(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, question)
        except ValueError as error:  # a label is empty or too long
            raise NoSuchName(f"{name!r} cannot be a host name") from error
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                raise NoSuchName(f"there is no such name ({error.strerror})") from error
            raise OSError(f"the system's resolver failed ({error.strerror})") from error
        return [str(address[0]) for *_, address in found]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)  # look-ups under way end by themselves


class _NameServers:
    """Asks `servers` over UDP, and TCP when an answer is long; knows no hosts file and no search list."""

    def __init__(self, servers: Sequence[str], patience_seconds: float) -> None:
        import aiodns  # only those who name servers need it

        self._patience_seconds = patience_seconds
        # c-ares doubles its patience with each try: a third, then two thirds.
        timeout_seconds = patience_seconds / (2**_TRIES - 1)
        self._connect = functools.partial(aiodns.DNSResolver, servers, timeout=timeout_seconds, tries=_TRIES)
        self._renew()

    def _renew(self) -> None:
        """Starts afresh; the old channel goes when its last look-up has."""
        self._servers = self._connect()
        self._num_left = _MAX_CHANNEL_NAMES

    async def addresses(self, name: str) -> Sequence[str]:
        if self._num_left == 0:
            self._renew()
        self._num_left -= 1
        # IPv4 first: it works where IPv6 is not routed, as in most clusters.
        answers = await asyncio.gather(self._records(name, "A"), self._records(name, "AAAA"))
        found = [address for answer in answers if isinstance(answer, list) for address in answer]
        if not found:  # of two faults, the one that may pass
            raise min((answer for answer in answers if isinstance(answer, OSError)), key=_is_lasting)
        return found

    async def close(self) -> None:
        await self._servers.close()

    async def _records(self, name: str, kind: str) -> list[str] | OSError:
        """The addresses of one `kind`, or why there are none: the other kind may still have some."""
        from aiodns.error import ARES_EBADNAME, ARES_ENODATA, ARES_ENOTFOUND, DNSError

        try:
            async with asyncio.timeout(self._patience_seconds):
                return await self._follow(name, kind)
        except TimeoutError:
            return OSError(f"the name servers gave no answer within {self._patience_seconds:g} s")
        except DNSError as error:
            code, meaning = error.args
            is_lasting = code in (ARES_EBADNAME, ARES_ENODATA, ARES_ENOTFOUND)
            return (NoSuchName if is_lasting else OSError)(f"the name servers say: {meaning}")
        except NoSuchName as error:
            return error

    async def _follow(self, name: str, kind: str) -> list[str]:
        import pycares

        wanted = pycares.ARecordData if kind == "A" else pycares.AAAARecordData
        servers = self._servers
        for _ in range(_MAX_ALIASES):
            records = [record.data for record in (await servers.query_dns(name, kind)).answer]
            found = [record.addr for record in records if isinstance(record, wanted)]
            if found:
                return found
            # Most servers send the whole chain; of one that does not, its last link is asked.
            aliases = [record.cname for record in records if isinstance(record, pycares.CNAMERecordData)]
            if not aliases:
                raise NoSuchName(f"{name} has no {kind} records")
            name = aliases[-1]
        raise NoSuchName(f"more than {_MAX_ALIASES} aliases, the last of them {name}")


def _is_lasting(fault: OSError) -> bool:
    return isinstance(fault, NoSuchName)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _split_port(target: str) -> tuple[str, int]:
    address, _, port = target.rpartition(":")
    return address.strip("[]"), int(port)
