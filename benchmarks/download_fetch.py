"""What fetching alone costs: small bodies from many hosts, guard and opt-outs on, nothing decoded.

python -m benchmarks.download_fetch PORT NUM_URLS     # prints CPU microseconds per URL
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from datetime import UTC, datetime

from dataengine.config.download import DownloadConfig, FetchConfig, GuardConfig
from dataengine.download.fetch import Fetched, fetch_all

NAME, NUM_BYTES = "body.bin", 1024
"""What must lie in the folder that is served."""
_NUM_HOSTS = 50


def fetch_cost(port: int, num_urls: int) -> float:
    """CPU-seconds of this process per URL. Raises RuntimeError when one of them fails."""
    hosts = {f"host{number}.test": f"127.0.0.1:{port}" for number in range(_NUM_HOSTS)}
    config = DownloadConfig(fetch=FetchConfig(per_host_rate=None), guard=GuardConfig(hosts=hosts))
    urls = [f"http://host{number % _NUM_HOSTS}.test/{NAME}?{number}" for number in range(num_urls)]
    reasons: Counter[str | None] = Counter()

    def count(_: int, fetched: Fetched) -> None:
        reasons[fetched.reason if fetched.content is None or len(fetched.content) == NUM_BYTES else "other body"] += 1

    started = time.process_time()
    asyncio.run(fetch_all(urls, config, 1, lambda: datetime.now(UTC), count))
    seconds = time.process_time() - started
    if reasons != {None: num_urls}:
        raise RuntimeError(f"not every URL gave its body, so the cost means nothing: {dict(reasons)}")
    return seconds / num_urls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("port", type=int)
    parser.add_argument("num_urls", type=int)
    arguments = parser.parse_args()
    print(fetch_cost(arguments.port, arguments.num_urls) * 1e6)


if __name__ == "__main__":
    main()
