"""What a host does not want taken is not taken, and what it cannot say for now is not taken for leave."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grafalign.captions import CaptionSet
from grafalign.captions.import_set import import_captions
from grafalign.captions.pack import pack
from grafalign.photos.exif import PhotoError
from grafalign.photos.fetch import RemoteSettings
from grafalign.photos.robots import Robots
from tests.caption_world import picture
from tests.photo_server import serving


def test_addresses_are_fetched_unless_their_host_does_not_want_it(tmp_path: Path) -> None:
    """robots.txt and X-Robots-Tag are heeded, and what was not had is a row."""
    with serving({name: picture(1) for name in ('a.png', 'private/b.png', 'c.png')}) as server:
        server.robots = b'User-agent: *\nDisallow: /photo/private/\n'
        server.tags['c.png'] = 'noai, noimageai'
        names = ('a.png', 'private/b.png', 'c.png', 'd.png')
        rows = [{'url': server.url(f'/photo/{name}'), 'text': 'a lake'} for name in names]
        (tmp_path / 't.jsonl').write_text('\n'.join(map(json.dumps, rows)))
        import_captions(tmp_path / 't.jsonl', tmp_path / 'set')
        remote = RemoteSettings(private_addresses=True, retries=0)
        done = pack(CaptionSet(tmp_path / 'set'), tmp_path / 'shards', remote=remote)
    assert (done.images, done.failed) == (1, 3)
    errors = pq.read_table(tmp_path / 'shards' / '00000.parquet')['error_message'].to_pylist()
    assert errors == [
        None,
        "the host's robots.txt forbids it",
        'the host does not want it taken (X-Robots-Tag: noai)',
        'HTTP 404',
    ]
    assert '/photo/private/b.png' not in server.asked and server.asked['/robots.txt'] == 1


@pytest.mark.parametrize(
    ('robots', 'path', 'allowed'),
    [
        ('User-agent: *\nDisallow: /a\nAllow: /a/b', '/a/b/c.png', True),
        ('User-agent: *\nAllow: /\nDisallow: /a', '/a/b.png', False),
        ('User-agent: *\nDisallow: /*.png$', '/x.png', False),
        ('User-agent: *\nDisallow: /*.png$', '/x.png?size=2', True),
        ('User-agent: *\nDisallow: /a\nAllow: /a', '/a', True),
        ('\ufeffUser-agent: *\nDisallow: /', '/x.png', False),
        ('User-agent: *\nDisallow: /\n\nUser-agent: grafalign\nDisallow: /private', '/x.png', True),
        ('User-agent: *\nDisallow:', '/x.png', True),
        ('User-agent: other\nDisallow: /', '/x.png', True),
    ],
)
def test_robots_txt_is_read_as_rfc_9309_says(robots: str, path: str, allowed: bool) -> None:
    """The longest rule decides, and allowing wins a tie."""
    rules = Robots(lambda url: robots.encode())
    if allowed:
        rules.check(f'https://x.test{path}')
    else:
        with pytest.raises(PhotoError, match='forbids it'):
            rules.check(f'https://x.test{path}')


@pytest.mark.parametrize(
    ('status', 'reason'),
    [(404, None), (403, None), (429, 'robots.txt: HTTP 429'), (503, 'robots.txt: HTTP 503')],
)
def test_a_robots_txt_that_is_not_there_forbids_nothing_and_one_that_cannot_be_had_everything(
    status: int, reason: str | None, tmp_path: Path
) -> None:
    """RFC 9309, 2.3.1.3 and 2.3.1.4; a host that asks for fewer requests has not said yes."""
    with serving({'a.png': picture(1)}) as server:
        server.robots, server.robots_status = b'no', status
        (tmp_path / 't.jsonl').write_text(json.dumps({'url': server.url('/photo/a.png'), 'text': 'a lake'}))
        import_captions(tmp_path / 't.jsonl', tmp_path / 'set')
        remote = RemoteSettings(private_addresses=True, retries=0)
        done = pack(CaptionSet(tmp_path / 'set'), tmp_path / 'shards', remote=remote)
    assert done.failed == (reason is not None)
    assert pq.read_table(tmp_path / 'shards' / '00000.parquet')['error_message'].to_pylist() == [reason]
