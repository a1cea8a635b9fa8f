"""A real STAC API: stac-fastapi on pgstac, on a private PostgreSQL cluster in a temporary folder.

`tests/stac_api/install.sh` installs the pieces. The cluster listens on a free port of this machine, keeps nothing (no
fsync) and is gone when the context ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent.parent
VENV = REPOSITORY / '.venv-stac'
_WAIT_S = 60


def missing() -> str | None:
    """What keeps the server from running here; None where nothing does."""
    if not (VENV / '.installed').is_file():
        return 'no .venv-stac: run tests/stac_api/install.sh'
    if _postgres_bin() is None:
        return 'no PostgreSQL with PostGIS: run tests/stac_api/install.sh'
    return None


def _postgres_bin() -> Path | None:
    for folder in sorted(Path('/usr/lib/postgresql').glob('*/bin'), reverse=True):
        control = Path('/usr/share/postgresql') / folder.parent.name / 'extension' / 'postgis.control'
        if (folder / 'initdb').is_file() and control.is_file():
            return folder
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def stac_api(collections: list[dict[str, Any]], items: list[dict[str, Any]]) -> Iterator[str]:
    """A running API with these collections and items.

    Yields:
        Its root URL.
    """
    binaries = _postgres_bin()
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix='stac_api_'))  # not under pytest's folder, which other users cannot enter
    database, port = _free_port(), _free_port()
    place = {
        'PGHOST': '127.0.0.1',
        'PGPORT': str(database),
        'PGUSER': 'stac',
        'PGPASSWORD': 'x',
        'PGDATABASE': 'postgres',
    }
    environment = {**os.environ, **place}
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, True)
        stack.enter_context(_cluster(binaries, folder / 'db', database))
        load = [str(VENV / 'bin' / 'pypgstac')]
        _run([*load, 'migrate'], environment)
        for table, rows in (('collections', collections), ('items', items)):
            path = folder / f'{table}.ndjson'
            path.write_text('\n'.join(json.dumps(row) for row in rows))
            _run([*load, 'load', table, str(path)], environment)
        command = [
            str(VENV / 'bin' / 'uvicorn'),
            '--factory',
            'stac_fastapi.pgstac.app:create_app',
            '--port',
            str(port),
        ]
        stack.enter_context(_process(command, folder / 'api.log', environment))
        root = f'http://127.0.0.1:{port}'
        _wait(lambda: urllib.request.urlopen(f'{root}/_mgmt/ping', timeout=5).status == 200, folder / 'api.log')
        yield root


@contextlib.contextmanager
def _cluster(binaries: Path, folder: Path, port: int) -> Iterator[None]:
    """A PostgreSQL server, as the user postgres where we are root, because it refuses to run as root."""
    folder.mkdir()
    log = folder.with_suffix('.log')
    log.touch()
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        who = {'user': 'postgres', 'group': 'postgres', 'extra_groups': []}
        for path in (folder.parent, folder, log):
            shutil.chown(path, 'postgres', 'postgres')
    setup = ['-D', str(folder), '-U', 'stac', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync']
    _run([str(binaries / 'initdb'), *setup], dict(os.environ), cwd=folder, **who)
    settings = {'listen_addresses': '127.0.0.1', 'unix_socket_directories': '', 'fsync': 'off', 'jit': 'off'}
    command = [str(binaries / 'postgres'), '-D', str(folder), '-p', str(port)]
    command += [part for key, value in settings.items() for part in ('-c', f'{key}={value}')]
    with _process(command, log, dict(os.environ), end=signal.SIGINT, cwd=folder, **who):  # SIGINT: a fast shutdown
        ready = [str(binaries / 'pg_isready'), '-q', '-h', '127.0.0.1', '-p', str(port)]
        _wait(lambda: subprocess.run(ready, check=False).returncode == 0, log)
        yield


@contextlib.contextmanager
def _process(
    command: list[str], log: Path, environment: dict[str, str], end: int = signal.SIGTERM, **how: Any
) -> Iterator[None]:
    """A process that runs as long as the context."""
    with log.open('ab') as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True, **how)
    try:
        yield
    finally:
        process.send_signal(end)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _run(command: list[str], environment: dict[str, str], **how: Any) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300, **how)
    assert done.returncode == 0, f'{command}: {done.stdout[-2000:]} {done.stderr[-2000:]}'


def _wait(ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _WAIT_S
    while True:
        with contextlib.suppress(OSError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(log.read_text()[-3000:])
        time.sleep(0.1)


def renamed(items: Iterable[dict[str, Any]], collection: str) -> list[dict[str, Any]]:
    """Items of another publisher under a collection of their own: both call theirs sentinel-2-l2a."""
    return [{**item, 'collection': collection} for item in items]
