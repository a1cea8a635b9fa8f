"""Which answers of a server are worth another try, and how long to wait for it."""

from __future__ import annotations

from urllib3 import Retry
from urllib3.exceptions import InvalidHeader

FOR_THE_MOMENT = (408, 425, 429, 500, 502, 503, 504)
"""Status codes after which the same request may succeed."""
LONGEST_WAIT_S = 300.0


class CappedRetry(Retry):
    """Waits as long as a server asks for, but no longer than five minutes, and not for what is no time at all."""

    def parse_retry_after(self, retry_after: str) -> float:
        """Seconds of a Retry-After header (a number or an HTTP date)."""
        try:
            return min(super().parse_retry_after(retry_after), LONGEST_WAIT_S)
        except InvalidHeader:
            return 0.0
