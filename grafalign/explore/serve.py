"""Open what is explored, and serve the page until Ctrl-C."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from pathlib import Path

import uvicorn

from grafalign import console
from grafalign.errors import GrafalignError, InputError, MachineError
from grafalign.explore.app import make_app
from grafalign.explore.photos import GroundPhotos
from grafalign.explore.session import Session
from grafalign.fields import open_field
from grafalign.maps import load_tuned
from grafalign.models import load_model
from grafalign.search import Catalog
from grafalign.store import PairStore


def open_session(
    index: Path,
    fields: list[Path],
    store: Path | None = None,
    tuned: Path | None = None,
    model: str | None = None,
    clip: str | None = None,
) -> Session:
    """Open an index with fields and a store.

    Args:
        index: the index.
        fields: fields of its model.
        store: where the ground photos are.
        tuned: words that points have moved (`words.npz`).
        model: where the index's model is now; where the index says by default.
        clip: its CLIP, for models that need one.

    Raises:
        GrafalignError: one of them cannot be opened, or a field is of another model.
    """
    catalog = Catalog(index)
    made = catalog.marker.model
    try:
        loaded = load_model(model or made.spec, clip or made.clip)
    except GrafalignError as error:
        if model is not None:
            raise
        raise type(error)(f'{error} The index {index} names that model; if it moved, give --model.') from None
    catalog.check_model(loaded.digest, loaded.name)
    opened = [open_field(path) for path in fields]
    for field in opened:
        field.check_model(loaded.digest, f'{loaded.name}, which made {index}')
    photos = None if store is None else GroundPhotos(PairStore(store))
    words = None if tuned is None else load_tuned(tuned)
    if words is not None:
        catalog.check_model(words.about.model_digest, words.about.model)
    return Session(catalog, loaded, opened, photos, words)


def serve(
    index: Path,
    fields: list[Path],
    store: Path | None,
    tuned: Path | None,
    host: str,
    port: int,
    model: str | None,
    clip: str | None,
) -> None:
    """Serve the page.

    Args:
        index: as of `open_session`, as the next three and the last two.
        fields: fields.
        store: where the ground photos are.
        tuned: words that points have moved.
        host: address to listen at.
        port: 0 for any.
        model: where the index's model is now.
        clip: its CLIP.

    Raises:
        GrafalignError: the port is in use, or what is shown cannot be opened.
    """
    listening = _listen(host, port)
    with listening:
        session = open_session(index, fields, store, tuned, model, clip)
        loopback = _is_loopback(host)
        token = None if loopback else secrets.token_urlsafe(24)
        hosts = (
            [host.lower(), '127.0.0.1', 'localhost', '::1']
            if loopback
            else [host.lower(), socket.gethostname().lower()]
        )
        shown = f'[{host}]' if ':' in host else host
        if host in ('0.0.0.0', '::'):
            shown = socket.gethostname()
            hosts = [shown.lower(), *_own_addresses(), '127.0.0.1', 'localhost']
        address = f'http://{shown}:{listening.getsockname()[1]}/'
        console.log(f'{address if token is None else f"{address}?token={token}"} (Ctrl-C ends)')
        config = uvicorn.Config(
            make_app(session, hosts, token), log_level='warning', access_log=False, server_header=False
        )
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before minutes of loading."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f'--host {host} is no address of this machine ({error}); give 127.0.0.1.') from None
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(where)
        found.listen(128)
    except OSError as error:
        found.close()
        raise MachineError(
            f'--host {host} --port {port} cannot be listened at ({error.strerror}); give another --port, or 0 for any.'
        ) from None
    return found


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == 'localhost'


def _own_addresses() -> list[str]:
    """Addresses of this machine by its own name."""
    try:
        return sorted({str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)})
    except OSError:
        return []
