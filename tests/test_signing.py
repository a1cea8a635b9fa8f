"""Signed addresses: tokens are shared, fetched anew in time and once for all threads, and only for blob hosts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3

from grafalign.config import parse_settings
from grafalign.errors import GrafalignError
from grafalign.scenes.signing import Signer
from grafalign.scenes.source import SceneSource, SignSettings
from tests.token_server import TokenServer, token_server


@pytest.fixture
def server() -> Iterator[TokenServer]:
    """A token service and blob store."""
    with token_server() as running:
        yield running


@pytest.fixture
def signer(server: TokenServer) -> Signer:
    """A signer for the server."""
    return Signer(SignSettings(tokens=f'http://{server.address}/token', blob_hosts=server.address), retries=1)


def href(server: TokenServer, name: str = 'a.tif', container: str = 'naip') -> str:
    """An unsigned address."""
    return f'http://{server.address}/account/{container}/{name}'


def status(url: str) -> int:
    """What the blob store answers."""
    return urllib3.request('GET', url, retries=False).status


def test_a_token_is_shared_by_a_container(server: TokenServer, signer: Signer) -> None:
    """One token serves all files of a container, and another container has its own."""
    assert status(href(server)) == 403
    assert [status(signer.sign(href(server, n))) for n in ('a.tif', 'b/c.tif', 'd.tif')] == [200, 200, 200]
    assert status(signer.sign(href(server, container='landsat'))) == 200
    assert server.fetched == ['/token/account/naip', '/token/account/landsat']


def test_no_request_is_made_with_a_stale_token(server: TokenServer, signer: Signer) -> None:
    """Signed right before each request, tokens of one second never meet a 403 and are fetched about once a second."""
    server.life_s = 1.0
    begin, count = time.monotonic(), 0
    while time.monotonic() < begin + 2.5:
        assert status(signer.sign(href(server))) == 200
        count += 1
    assert server.refused == 0 and 3 <= len(server.fetched) <= 6 < count


def test_threads_wait_for_one_token(server: TokenServer, signer: Signer) -> None:
    """Sixteen threads that need a token of one container make one request for it, also when it has run out."""
    server.slow_s, server.life_s = 0.2, 2.0
    for expected in (1, 2):
        barrier = threading.Barrier(16)

        def read(number: int, barrier: threading.Barrier = barrier) -> int:
            barrier.wait()
            return status(signer.sign(href(server, f'{number}.tif')))

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(read, range(16))) == [200] * 16
        assert len(server.fetched) == expected
        time.sleep(2)


def test_a_refused_token_is_fetched_anew_once(server: TokenServer, signer: Signer) -> None:
    """After tokens are revoked, each of eight threads refreshes the address that failed; one new token is fetched."""
    signed = [signer.sign(href(server, f'{n}.tif')) for n in range(8)]
    server.revoke()
    assert [status(s) for s in signed] == [403] * 8
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda n: signer.refresh(href(server, f'{n}.tif'), signed[n]), range(8)))
    assert [status(s) for s in again] == [200] * 8 and len(server.fetched) == 2


def test_a_wrong_clock_here_does_not_matter(server: TokenServer, signer: Signer) -> None:
    """A token's life is counted by the service's clock: an hour apart either way, it is neither refetched nor kept."""
    for ahead in (3600.0, -3600.0):
        server.clock_ahead_s, server.life_s = ahead, 2.0
        server.fetched.clear()
        fresh = Signer(SignSettings(tokens=f'http://{server.address}/token', blob_hosts=server.address))
        assert [status(fresh.sign(href(server))) for _ in range(5)] == [200] * 5
        assert len(server.fetched) == 1
        time.sleep(2.1)
        assert status(fresh.sign(href(server))) == 200 and len(server.fetched) == 2


def test_only_blob_hosts_are_signed(server: TokenServer) -> None:
    """Hosts that end like the blob store but are not, http, other schemes and paths get no token."""
    signer = Signer(SignSettings(tokens=f'http://{server.address}/token'))
    blob = 'https://naipeuwest.blob.core.windows.net/naip/v002/a b.tif'
    assert signer.sign(blob) == f'{blob}?se=x&sig=t1'
    assert signer.sign(f'{blob}?snapshot=1') == f'{blob}?snapshot=1&se=x&sig=t1'
    assert server.fetched == ['/token/naipeuwest/naip']
    for other in (
        'https://naipeuwest.blob.core.windows.net.evil.org/naip/a.tif',
        'https://evil.org/naipeuwest.blob.core.windows.net/a.tif',
        'http://naipeuwest.blob.core.windows.net/naip/a.tif',
        'https://naipeuwest.blob.core.windows.net/',
        's3://bucket/key.tif',
        '/data/a.tif',
    ):
        assert signer.sign(other) == other == signer.refresh(other, other)


@pytest.mark.parametrize(
    ('answer', 'says'),
    [
        ((404, 'no such container'), '404'),
        ((200, '<html>'), 'JSON'),
        ((200, '{"token": "a=b"}'), 'msft:expiry'),
        ((200, '{"token": "", "msft:expiry": "2030-01-01T00:00:00Z"}'), 'empty'),
        ((200, '{"token": "a=b", "msft:expiry": "soon"}'), 'soon'),
        ((200, '[]'), 'TypeError'),
    ],
)
def test_a_service_without_tokens_is_one_sentence(
    server: TokenServer, signer: Signer, answer: tuple[int, str], says: str
) -> None:
    """Whatever the service answers instead of a token, the sentence has its address and the remedy."""
    server.answers = [answer]
    with pytest.raises(GrafalignError, match=rf'{server.address}/token/account/naip.*{says}.*scenes.sign'):
        signer.sign(href(server))
    assert status(signer.sign(href(server))) == 200  # a failure is not remembered


def test_a_busy_token_service_is_asked_again(server: TokenServer, signer: Signer) -> None:
    """503 is not the end."""
    server.answers = [(503, '')]
    assert status(signer.sign(href(server))) == 200 and len(server.fetched) == 2


def test_the_shorthand_is_the_planetary_computer() -> None:
    """`sign: planetary-computer` means its public token service and blob hosts; other words are refused."""
    content = {'items': 'a.json', 'sign': 'planetary-computer'}
    source = parse_settings(content, SceneSource, 'recipe.yaml')
    assert source.sign == SignSettings()
    assert source.sign.tokens == 'https://planetarycomputer.microsoft.com/api/sas/v1/token'
    assert SceneSource.model_validate(source.model_dump()) == source
    with pytest.raises(GrafalignError, match=r'recipe.yaml.*sign.*planetary-computer'):
        parse_settings({**content, 'sign': 'mars'}, SceneSource, 'recipe.yaml')
