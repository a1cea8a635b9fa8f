"""A server of the tests, running in a thread while a test needs it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import TypeVar

Server = TypeVar('Server', bound=ThreadingHTTPServer)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Serve until the context ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
