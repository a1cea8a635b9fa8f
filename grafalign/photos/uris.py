"""Where a row's photo lies: the one rule for paths and addresses that a table may name."""

from __future__ import annotations

import os.path
import re
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grafalign.photos.values import Column

SCHEMES = ('file', 'http', 'https', 's3', 'gs')
"""What a table may name unless `photos.schemes` says otherwise."""
KNOWN = (*SCHEMES, 's3a', 'gcs', 'az', 'abfs', 'abfss', 'adl', 'oci', 'oss', 'hf', 'hdfs', 'memory')
"""What it may name at all: what photos can be fetched from."""
_SCHEME = r'^(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://'
_OTHER = r'^(?i:(?P<scheme>data|javascript|file|blob|about|mailto|vbscript)):'
NOT_ALLOWED, ESCAPES, UNUSABLE = 'uri scheme is not allowed', 'uri leaves the root folder', 'unusable uri'


def resolve_uris(uris: Column, root: str, schemes: tuple[str, ...]) -> tuple[Column, Column]:
    """Absolute paths and addresses of a column of uris, and what is wrong with those that a table may not name.

    Relative paths lie below `root` and cannot leave it; absolute paths are taken as they are; `file:` addresses become
    paths.

    Args:
        uris: Arrow strings; missing ones stay missing and have no problem.
        root: absolute folder, or an address that ends in a folder.
        schemes: allowed schemes; `file` stands for paths too.

    Returns:
        uris and problems, both Arrow strings.
    """
    scheme = _schemes(uris)
    problem = pa.nulls(len(uris), pa.string())
    bare = pc.and_(pc.is_valid(uris), pc.is_null(scheme))
    files = pc.fill_null(pc.equal(scheme, 'file'), False)
    if pc.any(files).as_py():
        uris, wrong = _file_addresses(uris, files)
        problem = pc.if_else(wrong, UNUSABLE, problem)
    absolute = pc.starts_with(uris, '/')
    if os.sep != '/':
        absolute = pc.or_(absolute, pc.match_substring_regex(uris, r'^[A-Za-z]:[\\/]'))
    relative = pc.and_(bare, pc.invert(absolute))
    climbs = pc.and_(relative, pc.match_substring_regex(uris, r'(^|[/\\])\.\.([/\\]|$)'))
    joined = pc.binary_join_element_wise(pa.scalar(root.rstrip('/')), uris, '/')
    if pc.any(climbs).as_py():
        joined, out = _climbing(joined, climbs, root)
        problem = pc.if_else(out, ESCAPES, problem)
    resolved = pc.if_else(relative, joined, uris)
    remote = scheme
    if '://' in root:
        remote = pc.if_else(relative, root.split('://')[0].lower(), scheme)
        bare = pc.and_(bare, pc.invert(relative))
    remote = pc.if_else(bare, 'file', remote)
    known = pc.is_in(remote, value_set=pa.array(list(schemes), pa.string()))
    nested = pc.and_(pc.is_null(scheme), pc.match_substring(uris, '://'))  # chains such as simplecache::https://...
    refused = pc.and_(pc.is_valid(uris), pc.or_(pc.invert(known), nested))
    problem = pc.if_else(refused, NOT_ALLOWED, problem)
    control = pc.match_substring_regex(resolved, r'[\x00-\x1f\x7f]')
    homeless = pc.match_substring_regex(resolved, r'^(?i:https?|s3|gs)://(/|\s|$)')
    problem = pc.if_else(pc.and_(pc.or_(control, homeless), pc.is_null(problem)), UNUSABLE, problem)
    return resolved, problem


def is_local(uris: Column) -> np.ndarray:
    """Which of the resolved uris are paths on this machine."""
    local = pc.and_(pc.is_valid(uris), pc.invert(pc.match_substring(uris, '://')))
    return np.asarray(pc.fill_null(local, False).to_numpy(zero_copy_only=False), dtype=bool)


def _schemes(uris: Column) -> Column:
    """Lower-case schemes, missing where a uri is a path."""
    if not pc.any(pc.match_substring(uris, ':')).as_py():
        return pa.nulls(len(uris), pa.string())
    found = [pc.struct_field(pc.extract_regex(uris, pattern), 'scheme') for pattern in (_SCHEME, _OTHER)]
    return pc.utf8_lower(pc.coalesce(*found))


def _file_addresses(uris: Column, files: Column) -> tuple[Column, Column]:
    """`file:` addresses as paths, and which of them name another machine or a relative path."""
    paths, wrong = [], []
    for address in uris.filter(files).to_pylist():
        parts = urllib.parse.urlsplit(re.sub(r'^(?i:file):(?!//)', 'file://', address))
        path = urllib.request.url2pathname(parts.path)
        wrong.append(parts.netloc not in ('', 'localhost') or not Path(path).is_absolute())
        paths.append(path)
    marks = pc.replace_with_mask(pa.array(np.zeros(len(uris), dtype=bool)), files, pa.array(wrong, pa.bool_()))
    return pc.replace_with_mask(uris, files, pa.array(paths, pa.string())), marks


def _climbing(joined: Column, climbs: Column, root: str) -> tuple[Column, Column]:
    """Paths with `..` worked out, and which of them leave the root."""
    scheme, mark, rest = root.rpartition('://')
    base = os.path.normpath(rest)
    paths, out = [], []
    for path in joined.filter(climbs).to_pylist():
        inside = os.path.normpath(path[len(scheme) + len(mark) :].replace('\\', '/'))
        out.append(not inside.startswith(base.rstrip('/') + '/'))
        paths.append(f'{scheme}{mark}{inside}')
    marks = pc.replace_with_mask(pa.array(np.zeros(len(joined), dtype=bool)), climbs, pa.array(out, pa.bool_()))
    return pc.replace_with_mask(joined, climbs, pa.array(paths, pa.string())), marks
