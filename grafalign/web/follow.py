"""A file on the web: one request, its redirects followed by hand, and its body under a cap and a deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import urllib3
from urllib3 import exceptions

from grafalign.web.addresses import AddressError, WebError, joined, origin_of
from grafalign.web.connections import LIMITS, USER_AGENT, Connections, seconds_left
from grafalign.web.retries import LONGEST_WAIT_S, Again, Lasting, Patience, answer_of, failure_of

Result = TypeVar('Result')
REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
_SHARED = Connections(4)


def follow(
    url: str,
    *,
    private: bool,
    timeout_s: float,
    read_s: float = math.inf,
    headers: dict[str, str] | None = None,
    connections: Connections = _SHARED,
    count: Callable[[], None] = lambda: None,
) -> urllib3.BaseHTTPResponse:
    """Make a request and follow its redirects one by one.

    Args:
        url: http or https.
        private: whether it, and redirects within its origin, may lead to a private host: a person named it.
        timeout_s: seconds for each hop; reads of the body need a deadline of their own (`LIMITS.deadline`).
        read_s: longest silence.
        headers: of every request.
        connections: by which to reach it.
        count: called before every request.

    Returns:
        A response whose body has not been read; close it.

    Raises:
        AddressError: an address is no address, leads to another scheme, or redirects go round in circles.
        PrivateAddressError: a host is private that must not be.
        urllib3.exceptions.HTTPError, TimeoutError: there is no answer.
    """
    home = origin_of(url)
    for _ in range(MOST_REDIRECTS + 1):
        LIMITS.start(timeout_s, private and origin_of(url) == home, read_s)
        count()
        response = connections.get(url, {'User-Agent': USER_AGENT, **(headers or {})})
        where = response.headers.get('Location')
        if response.status not in REDIRECTS or not where:
            return response
        response.close()
        url = joined(url, where)
    raise AddressError('too many redirects')


def open_url(url: str, *, private: bool, timeout_s: float, retries: int = 3) -> urllib3.BaseHTTPResponse:
    """Open a file on the web, in spite of failures that pass.

    Args:
        url: http or https.
        private: as of `follow`.
        timeout_s: for each hop.
        retries: tries after the first one.

    Returns:
        A response of status 200 whose body has not been read; close it.

    Raises:
        WebError: there is none.
    """
    return patiently(lambda: answered(follow(url, private=private, timeout_s=timeout_s)), retries)


def patiently(work: Callable[[], Result], retries: int) -> Result:
    """Do what asks a server, until it is done or fails in a way that another try would meet again.

    Args:
        work: does it once.
        retries: tries after the first one.

    Raises:
        WebError: it fails.
    """
    patience = Patience(retries, LONGEST_WAIT_S)
    while True:
        try:
            return work()
        except (WebError, exceptions.HTTPError, OSError, UnicodeError) as error:
            failure = failure_of(error)
        if not isinstance(failure, Again) or not patience.wait(failure):
            raise failure


def answered(response: urllib3.BaseHTTPResponse) -> urllib3.BaseHTTPResponse:
    """A response of status 200, as it is; another one is closed.

    Raises:
        WebError: it is of another status.
    """
    if response.status == 200:
        return response
    response.close()
    raise answer_of(response) or Lasting(f'HTTP {response.status}', response.status)


class Answer(NamedTuple):
    """The whole of a small file on the web."""

    content: bytes
    headers: urllib3.HTTPHeaderDict


def read_url(url: str, *, private: bool, timeout_s: float, most_bytes: int, retries: int = 3) -> Answer:
    """Read a small file.

    Args:
        url: http or https.
        private: as of `follow`.
        timeout_s: for each hop, and for the body.
        most_bytes: largest body, unpacked.
        retries: tries after the first one.

    Raises:
        WebError: it cannot be had, or is larger.
    """

    def work() -> Answer:
        return read_body(answered(follow(url, private=private, timeout_s=timeout_s)), timeout_s, most_bytes)

    return patiently(work, retries)


def read_body(response: urllib3.BaseHTTPResponse, timeout_s: float, most_bytes: int) -> Answer:
    """Read the body of a response and close it.

    Args:
        response: whose body has not been read.
        timeout_s: until its last byte must have come.
        most_bytes: largest body, unpacked.

    Raises:
        WebError: it breaks off, or is larger.
    """
    LIMITS.deadline = time.monotonic() + timeout_s
    content = bytearray()
    try:
        while piece := response.read(1 << 16, decode_content=True):
            content += piece
            if len(content) > most_bytes:
                raise Lasting(f'more than {most_bytes / 1e6:g} MB')
            seconds_left()
        return Answer(bytes(content), response.headers)
    except (exceptions.HTTPError, OSError) as error:
        raise failure_of(error) from None
    finally:
        response.close()
