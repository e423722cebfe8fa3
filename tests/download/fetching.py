"""Fetches from a loopback site, as a worker would."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

from dataengine.config.download import DownloadConfig, FetchConfig, GuardConfig, LimitsConfig
from dataengine.download.fetch import Fetched, Fetcher, fetch_all
from tests.download.site import Route, Site, serving

NOW = datetime(2030, 1, 2, tzinfo=UTC)
HOST = "photos.test"


def config(site: Site, *, limits: LimitsConfig | None = None, honor: bool = True, **fetch: object) -> DownloadConfig:
    settings = FetchConfig(
        **({"total_seconds": 5.0, "connect_seconds": 1.0, "retries": 0, "per_host_rate": None} | fetch)
    )
    hosts = {
        HOST: f"127.0.0.1:{site.port}",
        "other.test": f"127.0.0.1:{site.port}",
        "down.test": "127.0.0.1:1",
    }
    return DownloadConfig(
        guard=GuardConfig(hosts=hosts),
        fetch=settings,
        limits=limits or LimitsConfig(max_body_bytes=4096),
        honor_opt_out=honor,
    )


def fetch(
    routes: Mapping[str, Route],
    *urls: str,
    limits: LimitsConfig | None = None,
    honor: bool = True,
    **settings: object,
) -> tuple[list[Fetched], Site]:
    """What each of `urls` came to, asked one after another, and the site that was asked."""

    async def run() -> tuple[list[Fetched], Site]:
        async with serving(routes) as site:
            asked = config(site, limits=limits, honor=honor, **settings)
            async with Fetcher(asked, 1, lambda: NOW) as fetcher:
                return [await fetcher.fetch(url) for url in urls], site

    return asyncio.run(run())


def fetch_one(routes: Mapping[str, Route], url: str = f"http://{HOST}/a", **settings: object) -> Fetched:
    return fetch(routes, url, **settings)[0][0]  # type: ignore[arg-type]


def collect(
    routes: Mapping[str, Route], urls: list[str], num_workers: int = 1, **settings: object
) -> tuple[dict[int, Fetched], Site]:
    async def run() -> tuple[dict[int, Fetched], Site]:
        results: dict[int, Fetched] = {}
        async with serving(routes) as site:

            async def keep(position: int, fetched: Fetched) -> None:
                assert position not in results
                results[position] = fetched

            await fetch_all(urls, config(site, **settings), num_workers, lambda: NOW, keep)  # type: ignore[arg-type]
        return results, site

    return asyncio.run(run())
