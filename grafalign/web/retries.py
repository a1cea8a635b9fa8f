"""Which answers of a server are worth another try, how long to wait for it, and what a failure is called."""

from __future__ import annotations

import socket
import ssl
import time

import urllib3
from urllib3 import Retry, exceptions

from grafalign.web.addresses import AddressError, WebError

WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
"""Status codes after which the same request may succeed."""
LONGEST_WAIT_S = 300.0
"""For a search of an API or a token, without which nothing goes on."""
LONGEST_RANGE_WAIT_S = 60.0
"""For a range of a scene: its tile has other scenes."""
LONGEST_PHOTO_WAIT_S = 120.0
"""For a photo: a host that asks for a longer pause is left alone, its photos may be fetched another day."""


class Again(WebError):
    """A failure that may pass.

    Args:
        reason: what happened.
        wait_s: seconds that the server asks to wait; None where it says nothing, 0 to try at once.
        status: HTTP status, where that is the reason.
    """

    def __init__(self, reason: str, wait_s: float | None = None, status: int | None = None) -> None:
        super().__init__(reason)
        self.wait_s, self.status = wait_s, status


class Lasting(WebError):
    """A failure that another try would meet again.

    Args:
        reason: what happened.
        status: HTTP status, where that is the reason.
    """

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Patience:
    """Tries of one request: waits between them, longer each time or as long as the server asks.

    Args:
        retries: tries after the first one.
        longest_s: longest wait.
    """

    def __init__(self, retries: int, longest_s: float) -> None:
        self._retries, self._longest_s = retries, longest_s
        self.failures = 0
        """In a row."""

    def wait(self, again: Again) -> bool:
        """Wait for the next try; False, at once, where there is none left."""
        self.failures += 1
        if self.failures > self._retries:
            return False
        backoff = min(0.125 * 2**self.failures, 8)
        time.sleep(min(self._longest_s, max(again.wait_s or 0.0, backoff)) if again.wait_s != 0 else 0)
        return True


def retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, 10.2.3); None without one that makes sense."""
    if not value:
        return None
    try:
        return max(0.0, float(Retry().parse_retry_after(value)))
    except (exceptions.InvalidHeader, ValueError, OverflowError):
        return None


class CappedRetry(Retry):
    """urllib3's own retries, which wait as a server asks, but at most `LONGEST_WAIT_S`."""

    def parse_retry_after(self, retry_after: str) -> float:
        """Seconds of a Retry-After header; 0 for what is no time at all."""
        return min(retry_after_s(retry_after) or 0.0, LONGEST_WAIT_S)


def failure_of(error: Exception) -> WebError:
    """What urllib3 and the system raise, in a few words that are the same for all of grafalign."""
    if isinstance(error, WebError):
        return error
    if isinstance(error, (exceptions.LocationValueError, UnicodeError)):
        return AddressError('not a valid address')
    if isinstance(error, exceptions.ProxyError):
        return Again(f'the proxy does not let it through ({" ".join(str(error.original_error).split())[:100]})')
    if isinstance(error, exceptions.NameResolutionError):
        if isinstance(error.__cause__, socket.gaierror) and error.__cause__.errno == socket.EAI_AGAIN:
            return Again('host name cannot be looked up')
        return Lasting('there is no such host')
    if isinstance(error, (exceptions.NewConnectionError, ConnectionRefusedError)):  # of urllib3's time-outs, too
        return Again('no connection')
    if isinstance(error, (exceptions.TimeoutError, TimeoutError)) or 'timed out' in str(error):
        return Again('timed out')
    if isinstance(error, (exceptions.SSLError, ssl.SSLError)):
        if 'CERTIFICATE_VERIFY_FAILED' in str(error):
            return Lasting('the certificate of the host is not valid')
        return Again('no secure connection')
    return Again('connection broken')


def answer_of(response: urllib3.BaseHTTPResponse) -> Again | None:
    """Whether an answer is worth another try."""
    if response.status not in WORTH_ANOTHER_TRY:
        return None
    wait_s = retry_after_s(response.headers.get('Retry-After')) or None
    return Again(f'HTTP {response.status}', wait_s, response.status)
