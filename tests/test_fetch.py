"""Photos come from files, hosts, stores and archives; whatever a host or an archive does, it costs that photo only."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grafalign.config import parse_settings
from grafalign.errors import GrafalignError
from grafalign.photos import tars, web
from grafalign.photos.exif import PhotoError
from grafalign.photos.fetch import Fetcher, RemoteSettings, is_remote
from grafalign.photos.tars import read_index
from grafalign.web import connections
from grafalign.web.addresses import is_public
from tests.photo_server import PhotoServer, serving
from tests.test_exif import encoded, picture

PHOTOS = {f'{i}.jpg': encoded(picture(seed=i)) for i in range(12)}
FIRST = PHOTOS['0.jpg']
HERE = RemoteSettings(private_addresses=True, timeout_s=5, retries=2, max_bytes=1_000_000)


@pytest.fixture(scope='module')
def shared() -> Iterator[PhotoServer]:
    """One server for tests that count nothing."""
    with serving(PHOTOS) as running:
        yield running


@pytest.fixture
def server() -> Iterator[PhotoServer]:
    """A server whose counts are the test's own."""
    with serving(PHOTOS) as running:
        yield running


def refusal(uri: str, remote: RemoteSettings = HERE) -> PhotoError:
    """Why a photo cannot be had."""
    with Fetcher(remote) as fetcher, pytest.raises(PhotoError) as error:
        fetcher.fetch(uri)
    assert len(str(error.value)) < 100
    return error.value


# --- files ------------------------------------------------------------------------------------------------------------


def test_local_files_are_read_whole(tmp_path: Path) -> None:
    """A path and a file:// address give the file's bytes, also with spaces, whatever the limits of remote photos."""
    path = tmp_path / 'my photo.jpg'
    path.write_bytes(FIRST)
    fetcher = Fetcher(RemoteSettings(max_bytes=10))
    assert fetcher.fetch(str(path)) == fetcher.fetch(path.as_uri()) == FIRST
    assert [is_remote(u) for u in (str(path), path.as_uri(), 'https://x/y', 'tar://a::/b')] == [0, 0, 1, 1]


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    """Folders, missing files and pipes, which would wait forever, each have their reason."""
    os.mkfifo(tmp_path / 'pipe')
    assert str(refusal(str(tmp_path / 'pipe'))) == 'not a file'
    assert str(refusal('/dev/zero')) == 'not a file'
    assert str(refusal(str(tmp_path))) == 'not a file'
    assert str(refusal(str(tmp_path / 'none.jpg'))) == 'file is missing'
    assert str(refusal(str(tmp_path / 'a\0b'))) == 'not a valid address'
    assert not refusal(str(tmp_path / 'none.jpg')).transient


# --- hosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('path', ['/photo/0.jpg', '/chunked', '/gzip', '/deflate', '/hops/4', '/too-short-once'])
def test_a_photo_comes_over_http(path: str, shared: PhotoServer) -> None:
    """Plain, chunked, packed, behind redirects or at the second try, the bytes are the photo's."""
    assert Fetcher(HERE).fetch(shared.url(path)) == FIRST


@pytest.mark.parametrize(
    ('path', 'reason', 'transient', 'tries'),
    [
        ('/status/404', 'HTTP 404', False, 1),
        ('/status/403', 'HTTP 403', False, 1),
        ('/status/204', 'HTTP 204', False, 1),
        ('/status/500', 'HTTP 500', True, 3),
        ('/status/503', 'HTTP 503', True, 3),
        ('/page', 'a web page, not an image', False, 1),
        ('/hops/9', 'too many redirects', False, 1),
        ('/to/file:///etc/passwd', 'redirected to file:', False, 1),
        ('/to/ftp://127.0.0.1/x', 'redirected to ftp:', False, 1),
        ('/claims-much', 'more than 1 MB', False, 1),
        ('/endless', 'more than 1 MB', False, 1),
        ('/gzip-bomb', 'more than 1 MB', False, 1),
        ('/brotli', 'packed as br', False, 1),
        ('/too-short', 'connection broken', True, 3),
        ('/chunked-cut', 'connection broken', True, 3),
        ('/gzip-cut', 'connection broken', True, 3),
        ('/reset', 'connection broken', True, 3),
    ],
)
def test_a_host_that_fails_costs_one_photo(
    path: str, reason: str, transient: bool, tries: int, server: PhotoServer
) -> None:
    """Every misbehaviour has its reason; only what may pass is tried again, and is marked so."""
    error = refusal(server.url(path))
    assert reason in str(error)
    assert error.transient == transient
    assert server.asked[path] == tries


@pytest.mark.parametrize('path', ['/drip-body', '/drip-head', '/drip-chunks', '/silence'])
def test_a_slow_host_ends_at_the_deadline(path: str, shared: PhotoServer) -> None:
    """However slowly bytes drip in, in body, head or chunk sizes, one try takes no longer than it may."""
    started = time.monotonic()
    error = refusal(shared.url(path), HERE.model_copy(update={'timeout_s': 0.5, 'retries': 0}))
    assert (str(error), error.transient) == ('timed out', True)
    assert time.monotonic() - started < 5  # the drips alone last 30 s


def test_a_busy_host_is_waited_for(server: PhotoServer) -> None:
    """After 429 or 503 with Retry-After the next request comes no sooner than asked, from any thread."""
    for status in (429, 503):
        path = f'/busy/{status}/1/1'
        assert Fetcher(HERE).fetch(server.url(path)) == FIRST
        assert server.times[-1] - server.times[-2] >= 0.99
    with Fetcher(HERE) as fetcher:
        begun = len(server.times)
        threads = ThreadPoolExecutor(2)
        slow = threads.submit(fetcher.fetch, server.url('/busy/429/1/2'))
        while len(server.times) == begun:
            time.sleep(0.01)
        time.sleep(0.2)
        assert fetcher.fetch(server.url('/photo/1.jpg')) == PHOTOS['1.jpg']
        assert slow.result() == FIRST
        assert server.times[begun + 1] - server.times[begun] >= 1.99


def test_a_host_that_wants_a_long_pause_is_left_alone(server: PhotoServer) -> None:
    """A Retry-After of an hour ends in a reason that is worth retrying another day, without waiting."""
    error = refusal(server.url('/busy/429/1/3600'))
    assert (str(error), error.transient) == ('HTTP 429', True)
    assert len(server.times) == 1


def test_connections_are_kept(server: PhotoServer) -> None:
    """Photos, errors and redirects of one host go over one connection; refused bodies cost theirs only."""
    with Fetcher(HERE) as fetcher:
        for name, content in PHOTOS.items():
            assert fetcher.fetch(server.url(f'/photo/{name}')) == content
            with pytest.raises(PhotoError, match='404'):
                fetcher.fetch(server.url('/status/404'))
            fetcher.fetch(server.url('/hops/1'))
        assert server.connections == 1
        for _ in range(2):
            with pytest.raises(PhotoError, match='more than'):
                fetcher.fetch(server.url('/gzip-bomb'))
            assert fetcher.fetch(server.url('/photo/0.jpg')) == FIRST
        assert server.connections <= 3
    assert server.agents == {HERE.user_agent}


def test_a_host_gets_no_more_requests_than_it_may(server: PhotoServer) -> None:
    """Forty threads ask a host for no more than `per_host` photos at a time, and get them all."""
    server.slowness_s = 0.05
    remote = HERE.model_copy(update={'per_host': 3})
    with Fetcher(remote) as fetcher, ThreadPoolExecutor(40) as threads:
        names = list(PHOTOS) * 4
        found = list(threads.map(lambda n: fetcher.fetch(server.url(f'/photo/{n}')), names))
    assert found == [PHOTOS[n] for n in names]
    assert server.most_at_once == 3
    assert server.connections <= 3


def test_a_host_gets_requests_no_faster_than_it_may(server: PhotoServer) -> None:
    """With a rate of 20 a second eleven requests of many threads take half a second or more."""
    remote = HERE.model_copy(update={'per_host_rate': 20})
    with Fetcher(remote) as fetcher, ThreadPoolExecutor(11) as threads:
        started = time.monotonic()  # here, as a busy server may be late to see the first request
        list(threads.map(lambda _: fetcher.fetch(server.url('/photo/0.jpg')), range(11)))
        assert time.monotonic() - started >= 0.5


def test_a_host_that_is_gone_is_not_asked_for_ever(server: PhotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After twenty tries without an answer the other photos of a host fail at once; later it is asked again."""
    monkeypatch.setattr(web, '_GONE_S', 1.0)
    with Fetcher(HERE.model_copy(update={'retries': 0})) as fetcher, ThreadPoolExecutor(4) as threads:

        def reason(path: str) -> str:
            with pytest.raises(PhotoError) as error:
                fetcher.fetch(server.url(path))
            assert error.value.transient
            return str(error.value)

        reasons = list(threads.map(reason, ['/reset'] * 200))
        assert set(reasons) == {'connection broken', 'the host does not answer'}
        assert 20 <= server.asked['/reset'] <= 24
        time.sleep(1.1)
        assert fetcher.fetch(server.url('/photo/0.jpg')) == FIRST
        for _ in range(30):  # an answer is an answer, also a bad one
            assert reason('/status/500') == 'HTTP 500'


def test_no_host_no_connection_no_address() -> None:
    """A closed port may pass, an address that makes no sense does not."""
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        port = taken.getsockname()[1]
    error = refusal(f'http://127.0.0.1:{port}/', HERE.model_copy(update={'retries': 0}))
    assert (str(error), error.transient) == ('no connection', True)
    for uri in ('http://', 'http://[::1', 'http://host:port/x', 'http://a..b/x', 'http://' + 'a' * 70 + '/x'):
        assert 'not a valid address' in str(refusal(uri)), uri


# --- private addresses ------------------------------------------------------------------------------------------------


def test_private_addresses_are_refused_however_they_are_spelled(server: PhotoServer) -> None:
    """Loopback by name, in decimal, octal, hexadecimal, short or mapped into IPv6 is refused before a connection."""
    careful = HERE.model_copy(update={'private_addresses': False})
    port = server.server_port
    spelled = [
        '127.0.0.1',
        'localhost',
        '2130706433',
        '0177.0.0.1',
        '0x7f000001',
        '0x7f.1',
        '127.1',
        '0',
        '0.0.0.0',
        '[::1]',
        '[::ffff:127.0.0.1]',
        '[::ffff:7f00:1]',
        '[64:ff9b::7f00:1]',
        '[2002:7f00:1::]',
        'user:word@127.0.0.1',
        '10.0.0.1',
        '192.168.0.1',
        '169.254.169.254',
        '100.64.0.1',
        '[fe80::1]',
        '[fc00::1]',
        '[::]',
        '224.0.0.1',
        '255.255.255.255',
    ]
    for host in spelled:
        assert 'private address' in str(refusal(f'http://{host}:{port}/photo/0.jpg', careful)), host
    assert server.connections == 0


def test_a_redirect_does_not_lead_inside(server: PhotoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that counts as public cannot send us on to one that is not."""
    monkeypatch.setattr(connections, 'is_public', lambda address: address != '127.0.0.2')
    careful = HERE.model_copy(update={'private_addresses': False})
    assert Fetcher(careful).fetch(server.url('/photo/0.jpg')) == FIRST
    inside = f'http://127.0.0.2:{server.server_port}/photo/0.jpg'
    assert str(refusal(server.url('/to/' + inside), careful)) == 'private address'
    assert server.asked['/photo/0.jpg'] == 1


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is looked up to a public and a private address is refused: either may answer."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (address, 80)) for address in ('93.184.216.34', '10.0.0.5')]
    monkeypatch.setattr(connections.socket, 'getaddrinfo', lambda *_, **__: found)
    assert str(refusal('http://rebound.example/x', HERE.model_copy(update={'private_addresses': False}))) == (
        'private address'
    )


def test_public_addresses_are_public() -> None:
    """Addresses of the internet pass, in both families and through NAT64."""
    for address in ('93.184.216.34', '8.8.8.8', '2606:2800:220:1::1', '64:ff9b::808:808', '::ffff:8.8.8.8'):
        assert is_public(address), address


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_an_unknown_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS a host that nobody vouches for is refused; one that is known gives its photos within the deadline."""
    if shutil.which('openssl') is None:
        pytest.skip('making a certificate takes openssl')
    words = 'req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=here -addext subjectAltName=IP:127.0.0.1'
    key, certificate = tmp_path / 'key.pem', tmp_path / 'certificate.pem'
    subprocess.run(['openssl', *words.split(), '-keyout', key, '-out', certificate], check=True, capture_output=True)
    both = tmp_path / 'both.pem'
    both.write_text(key.read_text() + certificate.read_text())
    with serving(PHOTOS, both) as server:
        error = refusal(server.url('/photo/0.jpg'))
        assert (str(error), error.transient) == ('the certificate of the host is not valid', False)
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
        assert Fetcher(HERE).fetch(server.url('/photo/0.jpg')) == FIRST
        slow = HERE.model_copy(update={'timeout_s': 0.5, 'retries': 0})
        assert str(refusal(server.url('/drip-body'), slow)) == 'timed out'


# --- stores -----------------------------------------------------------------------------------------------------------


def test_object_stores_are_read_through_fsspec() -> None:
    """A store's photo comes whole, its tar by parts; missing and oversized ones have their reason."""
    import fsspec

    memory = fsspec.filesystem('memory')
    memory.pipe({'/bucket/a.jpg': FIRST, '/bucket/big.jpg': b'\xff' * 1_000_001, '/bucket/0.tar': tar_of(PHOTOS)})
    try:
        fetcher = Fetcher(HERE)
        assert fetcher.fetch('memory://bucket/a.jpg') == FIRST
        assert fetcher.fetch('tar://3.jpg::memory://bucket/0.tar') == PHOTOS['3.jpg']
        assert str(refusal('memory://bucket/none.jpg')) == 'file is missing'
        assert str(refusal('tar://3.jpg::memory://bucket/none.tar')) == 'file is missing'
        assert str(refusal('memory://bucket/big.jpg')) == 'more than 1 MB'
    finally:
        memory.rm('/bucket', recursive=True)


def test_a_missing_package_is_named() -> None:
    """A row of a store whose package is not installed is that row's reason, and worth another try once it is."""
    with pytest.raises(PhotoError, match='oss:// needs a package that is not installed') as error:
        Fetcher(HERE).fetch('oss://bucket/photo.jpg')
    assert error.value.transient


def test_other_schemes_are_not_read() -> None:
    """Schemes that could reach inside or write to disk are refused, alone and around an archive."""
    for uri in (
        'ftp://127.0.0.1/a.jpg',
        'simplecache::https://host/a.jpg',
        'zip://a.jpg::https://host/a.zip',
        'tar://a.jpg::ftp://host/a.tar',
        'tar://a.jpg::tar://b.tar::/c.tar',
        'tar://a.jpg::simplecache::https://host/a.tar',
        'tar://a.jpg',
        'tar://::/c.tar',
        'gopher://x',
    ):
        assert not refusal(uri).transient, uri


# --- archives ---------------------------------------------------------------------------------------------------------


def tar_of(members: dict[str, bytes], **options: object) -> bytes:
    """An archive of files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w', **options) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize('kind', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_member_of_a_tar_is_found(kind: int, tmp_path: Path) -> None:
    """All three formats, names of any length and alphabet: what Python's own reader finds, we find."""
    members = {f'{"folder/" * depth}{name}': content for depth in (0, 3, 11) for name, content in PHOTOS.items()}
    if kind != tarfile.USTAR_FORMAT:
        members |= {'ä/ö 山.jpg': b'umlaut', 'long' * 60 + '.jpg': b'long', 'empty.jpg': b''}
    path = tmp_path / '0.tar'
    path.write_bytes(tar_of(members, format=kind))
    fetcher = Fetcher(HERE)
    for name, content in members.items():
        assert fetcher.fetch(f'tar://{name}::{path}') == content
    assert str(refusal(f'tar://none.jpg::{path}')) == 'not in the tar'


def test_a_tar_on_a_host_is_indexed_once(server: PhotoServer) -> None:
    """A remote shard is walked over once and then gives each photo by one request of its range."""
    server.photos = {'0.tar': tar_of(PHOTOS)}
    with Fetcher(HERE) as fetcher, ThreadPoolExecutor(6) as threads:
        names = list(PHOTOS)
        found = list(threads.map(lambda n: fetcher.fetch(f'tar://{n}::{server.url("/photo/0.tar")}'), names))
    assert found == list(PHOTOS.values())
    assert sum(server.asked.values()) == 1 + len(names)
    assert 'no range requests' in str(refusal(f'tar://0.jpg::{server.url("/no-ranges")}'))
    assert str(refusal(f'tar://0.jpg::{server.url("/photo/9.tar")}')) == 'HTTP 404'


def test_members_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    """Links, devices, pipes, absolute names and names with `..` are known and refused with a reason."""
    path = tmp_path / 'evil.tar'
    with tarfile.open(path, 'w') as archive:
        for name, kind in (
            ('symbolic.jpg', tarfile.SYMTYPE),
            ('hard.jpg', tarfile.LNKTYPE),
            ('device.jpg', tarfile.CHRTYPE),
            ('pipe.jpg', tarfile.FIFOTYPE),
            ('/etc/passwd', tarfile.REGTYPE),
            ('a/../../b.jpg', tarfile.REGTYPE),
            ('good.jpg', tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, '/etc/passwd', 4 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b'good'))
    assert Fetcher(HERE).fetch(f'tar://good.jpg::{path}') == b'good'
    for name in ('symbolic.jpg', 'hard.jpg', 'device.jpg', 'pipe.jpg'):
        assert 'a link or a device' in str(refusal(f'tar://{name}::{path}'))
    for name in ('/etc/passwd', 'a/../../b.jpg'):
        assert 'leads out' in str(refusal(f'tar://{name}::{path}'))


def lying(name: str, size: int) -> bytes:
    """A header that claims a size, with its right checksum."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def test_a_tar_that_lies_is_bounded(tmp_path: Path) -> None:
    """Sizes beyond the end, negative ones and headers of gigabytes neither fill memory nor hide what came before."""
    good = tar_of({'good.jpg': b'good'})[:1024]
    long = tarfile.TarInfo('././@LongLink')
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 8 * 10**9
    cases = {
        'beyond': lying('bad.jpg', 10**9) + b'short',
        'far': lying('bad.jpg', 2**62),
        'negative': lying('bad.jpg', -512),
        'long name': long.tobuf(tarfile.GNU_FORMAT),
        'garbage': b'\xaa' * 5000,
        'cut': lying('bad.jpg', 5)[:300],
    }
    for name, rest in cases.items():
        path = tmp_path / f'{name}.tar'
        path.write_bytes(good + rest)
        assert Fetcher(HERE).fetch(f'tar://good.jpg::{path}') == b'good', name
        assert str(refusal(f'tar://bad.jpg::{path}')) in (
            'the tar ends before this file does', 'more than 2000 MB', 'not in the tar',
        ), name  # fmt: skip


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    """A compressed tar, a photo and a missing file each have their reason."""
    (tmp_path / 'packed.tar').write_bytes(tar_of_gz())
    (tmp_path / 'photo.tar').write_bytes(FIRST)
    assert 'compressed' in str(refusal(f'tar://a::{tmp_path / "packed.tar"}'))
    assert str(refusal(f'tar://a::{tmp_path / "photo.tar"}')) == 'not a tar'
    assert str(refusal(f'tar://a::{tmp_path / "none.tar"}')) == 'file is missing'


def tar_of_gz() -> bytes:
    """A gzipped archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w:gz') as archive:
        archive.addfile(tarfile.TarInfo('a'))
    return buffer.getvalue()


def test_indexes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of too many files is refused, and old indexes are forgotten without harm."""
    paths = []
    for i in range(4):
        paths.append(tmp_path / f'{i}.tar')
        paths[-1].write_bytes(tar_of(PHOTOS))
    monkeypatch.setattr(tars, 'MAX_CACHED_MEMBERS', 30)
    fetcher = Fetcher(HERE)
    for path in [*paths, *paths]:
        assert fetcher.fetch(f'tar://5.jpg::{path}') == PHOTOS['5.jpg']
    assert sum(len(i) for i in fetcher._tars._indexes.values()) <= 30
    monkeypatch.setattr(tars, 'MAX_MEMBERS', 5)
    assert 'more than 5 files' in str(refusal(f'tar://5.jpg::{paths[0]}'))


@settings(max_examples=200, deadline=5000)
@given(st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), min_size=1, max_size=30), st.booleans())
def test_a_damaged_tar_gives_an_index_or_a_reason(changes: list[tuple[int, int]], mend: bool) -> None:
    """Whatever bytes are wrong, also under checksums that were mended, reading ends and every place is a number."""
    content = bytearray(tar_of({f'{"n" * 120}{i}.jpg': b'content' * 30 for i in range(3)}, format=tarfile.PAX_FORMAT))
    for at, value in changes:
        content[at % len(content)] = value
    if mend:
        for at in range(0, len(content) - 511, 512):
            block = content[at : at + 512]
            content[at + 148 : at + 156] = b'%06o\0 ' % tarfile.calc_chksums(bytes(block))[0]
    try:
        index = read_index(lambda at, size: bytes(content[at : at + size]))
    except PhotoError:
        return
    for place in index.values():
        assert isinstance(place, str) or (place[0] >= 0 and place[1] >= 0)


# --- settings and threads ---------------------------------------------------------------------------------------------


def test_wrong_settings_are_one_sentence() -> None:
    """Unknown keys and impossible values name themselves."""
    for content, word in (
        ({'retrys': 1}, 'retries'),
        ({'timeout_s': 0}, 'timeout_s'),
        ({'user_agent': 'a\nb'}, 'user'),
    ):
        with pytest.raises(GrafalignError, match=word):
            parse_settings(content, RemoteSettings, 'recipe.yaml')


def test_threads_share_a_fetcher(server: PhotoServer) -> None:
    """Sixteen threads that fetch good and bad photos at once each get what is theirs."""
    wrong: list[str] = []

    def work(seed: int) -> None:
        for step in range(12):
            name = f'{(seed + step) % 12}.jpg'
            if fetcher.fetch(server.url(f'/photo/{name}')) != PHOTOS[name]:
                wrong.append(name)
            for path, reason in (('/status/404', 'HTTP 404'), ('/gzip-bomb', 'more than 1 MB')):
                try:
                    fetcher.fetch(server.url(path))
                    wrong.append(path)
                except PhotoError as error:
                    if str(error) != reason:
                        wrong.append(str(error))

    with Fetcher(HERE) as fetcher:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
