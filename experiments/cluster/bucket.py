"""An S3 server on this machine that counts what it is asked for, and a cluster of Dask workers."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Counted:
    """Counts the requests that a server answers and the bytes of the answers, by the top folder of what is asked for.

    Args:
        server: answers them.
    """

    def __init__(self, server: Wsgi) -> None:
        self._server, self._lock = server, threading.Lock()
        self._requests: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def __call__(self, environment: dict[str, Any], begin: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        parts = environment['PATH_INFO'].strip('/').split('/')
        kind = parts[1] if environment['REQUEST_METHOD'] == 'GET' and len(parts) > 2 else 'other'
        content = b''.join(self._server(environment, begin))
        with self._lock:
            self._requests[kind] += 1
            self._bytes[kind] += len(content)
        return [content]

    def take(self) -> dict[str, dict[str, int]]:
        """Requests and bytes since this was last asked, for each folder that was read."""
        with self._lock:
            kinds = sorted(k for k in self._requests if k != 'other')
            counts = {k: {'requests': self._requests[k], 'bytes': self._bytes[k]} for k in kinds}
            self._requests.clear()
            self._bytes.clear()
            return counts


@contextmanager
def serving_bucket() -> Iterator[Counted]:
    """An S3 server on this machine; the environment says where, for this process and all that it starts."""
    logging.getLogger('werkzeug').setLevel(logging.ERROR)  # it tells of every request
    counted = Counted(DomainDispatcherApplication(create_backend_app))
    server = make_server('127.0.0.1', 0, counted, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        'AWS_ENDPOINT_URL': f'http://127.0.0.1:{server.server_port}',
        'AWS_ACCESS_KEY_ID': 'example',
        'AWS_SECRET_ACCESS_KEY': 'example',
        'AWS_DEFAULT_REGION': 'us-east-1',
    }
    try:
        yield counted
    finally:
        server.shutdown()


@contextmanager
def dask_cluster(folder: Path, workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and workers, each a process of its own, as on several machines: its address, and the workers."""
    file = folder / 'scheduler.json'
    file.unlink(missing_ok=True)
    run = [sys.executable, '-m', 'distributed.cli.dask_scheduler', '--host', '127.0.0.1', '--port', '0']
    work = [sys.executable, '-m', 'distributed.cli.dask_worker', '--nthreads', '1', '--no-nanny']
    shared = ['--no-dashboard', '--scheduler-file', str(file)]
    log = (folder / 'cluster.log').open('wb')
    processes = [subprocess.Popen([*run, *shared], stderr=log)]
    try:
        while not file.exists():
            if processes[0].poll() is not None:
                raise SystemExit(f'the scheduler ended: {folder / "cluster.log"}')
            time.sleep(0.05)
        processes += [subprocess.Popen([*work, *shared], stderr=log) for _ in range(workers)]
        yield json.loads(file.read_text())['address'], processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        log.close()
