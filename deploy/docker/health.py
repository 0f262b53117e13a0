"""Health check inside a container: a role is alive while its HTTP port answers.

    python -I /opt/headwater/health.py

Takes: ``HEADWATER_METRICS_PORT`` (a worker's ``/metrics``), else ``HEADWATER_QUERY_PORT`` (the query service's ``/livez``). Gives: exit code 0 or 1.
Owns: which address is asked. Never: imports Headwater: a check that loads pyarrow every few seconds would cost more than the role when it is idle.
"""

from __future__ import annotations

import os
import sys
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

ANSWER_SECONDS = 4.0


def address() -> str:
    """What to ask, on this container's loopback."""
    port = os.environ.get("HEADWATER_METRICS_PORT")
    return f"http://127.0.0.1:{port}/metrics" if port else f"http://127.0.0.1:{os.environ.get('HEADWATER_QUERY_PORT', '8080')}/livez"


def main() -> int:
    """Ask once, without the proxies of the environment; returns the exit code."""
    try:
        with build_opener(ProxyHandler({})).open(address(), timeout=ANSWER_SECONDS) as answer:
            return 0 if answer.status == 200 else 1
    except (URLError, OSError) as error:
        sys.stderr.write(f"{address()}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
