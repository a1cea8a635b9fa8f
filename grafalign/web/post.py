"""JSON to a server that a person named, and its JSON back."""

from __future__ import annotations

import json
from typing import Any

from grafalign.foreign.files import parse_object
from grafalign.web.addresses import origin_of
from grafalign.web.connections import LIMITS, USER_AGENT, Connections
from grafalign.web.follow import Answer, answered, patiently, read_body
from grafalign.web.retries import Lasting

_SHARED = Connections(1)


def post_json(
    url: str, content: dict[str, Any], headers: dict[str, str], *, timeout_s: float, most_bytes: int, retries: int = 3
) -> dict[str, Any]:
    """Post JSON, in spite of failures that pass; redirects are not followed.

    Args:
        url: http or https; it may be private, as a person named it.
        content: what is sent.
        headers: of the request, beside those of JSON.
        timeout_s: for the answer to begin, and again to end.
        most_bytes: largest answer, unpacked.
        retries: tries after the first one.

    Raises:
        WebError: there is no answer, or it is no JSON object.
    """
    origin_of(url)
    body = json.dumps(content).encode()
    headers = {'User-Agent': USER_AGENT, 'Content-Type': 'application/json', 'Accept': 'application/json', **headers}

    def work() -> Answer:
        LIMITS.start(timeout_s, private=True)
        return read_body(answered(_SHARED.post(url, headers, body)), timeout_s, most_bytes)

    try:
        return parse_object(patiently(work, retries).content)
    except ValueError as error:
        raise Lasting(f'its answer is no JSON object ({error})') from None
