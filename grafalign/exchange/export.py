"""Export: a satellite encoder as a whole CLIP that other tools load, with its patch head and a model card.

    OUT/ layout of open_clip or transformers (`open_clip_layout.py`, `transformers_layout.py`)
    OUT/patch_head.safetensors   LayerNorm and projection of the patch embeddings
    OUT/README.md                the model card
    OUT/grafalign_export.json    what this is; marks the folder as ours, written last

The folder is written beside its name and takes it by a rename: it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from grafalign import __version__
from grafalign.errors import GrafalignError, InputError, naming_full_disk
from grafalign.exchange.exportable import Exportable, save_patch_head
from grafalign.exchange.mammut_layout import is_mammut, write_mammut
from grafalign.exchange.marker import MARKER, ExportMarker, Format
from grafalign.exchange.model_card import CardContent, write_card
from grafalign.exchange.open_clip_layout import builtin_config, write_open_clip
from grafalign.exchange.transformers_layout import write_transformers
from grafalign.exchange.usage import (
    open_clip_by_name,
    open_clip_code,
    open_clip_patches,
    transformers_code,
    transformers_patches,
)
from grafalign.files import file_digest
from grafalign.locks import exclusive


def check_format(name: str) -> Format:
    """The format of that name.

    Raises:
        GrafalignError: there is none.
    """
    for known in get_args(Format):
        if name == known:
            return known
    raise InputError(f'There is no export format {name!r}; give --format {" or ".join(get_args(Format))}.')


def check_out(out: Path) -> None:
    """Check that a folder may become an export: it is not there, empty, or an export of ours and nothing else.

    Raises:
        GrafalignError: it holds something else, which an export would remove.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f'{out} is a file; give the export a folder of its own.')
    present = {p.name for p in out.iterdir()}
    try:
        marker = ExportMarker.of(out)
    except GrafalignError:
        marker = None
    known = set() if marker is None else {MARKER, *marker.files}
    strange = sorted(present - known)
    if strange:
        raise InputError(
            f'{out} is not empty and not an export of grafalign (it holds {strange[0]}); '
            'give another folder, or move that away.'
        )


def export(exportable: Exportable, card: CardContent, out: Path, kind: Format) -> ExportMarker:
    """Write an export; an earlier one in the same folder is replaced.

    Args:
        exportable: encoder, CLIP and how pixels become input.
        card: what the model card tells.
        out: the folder.
        kind: `open_clip` or `transformers`.

    Returns:
        What `grafalign_export.json` says.

    Raises:
        GrafalignError: the format cannot express the model, `out` holds something else, or the disk is full.
    """
    with naming_full_disk(out), _taking_its_name(out) as folder:
        mammut = is_mammut(exportable)
        if kind == 'open_clip' and mammut:
            write_mammut(exportable, folder)
            code = [('Use with open_clip 4 or later', open_clip_code(exportable, card.hub))]
            code.append(('Patch embeddings', open_clip_patches(exportable)))
        elif kind == 'open_clip':
            write_open_clip(exportable, folder)
            code = [('Use with open_clip', open_clip_code(exportable, card.hub))]
            builtin = builtin_config(exportable.clip.settings)
            if builtin is not None:
                code.append(('The same by the name of the architecture', open_clip_by_name(exportable, builtin)))
            code.append(('Patch embeddings', open_clip_patches(exportable)))
        elif mammut:
            raise InputError(
                'This model has one text decoder that embeds texts and writes captions, which CLIPModel of '
                'transformers cannot express; use --format open_clip.'
            )
        else:
            write_transformers(exportable, folder)
            code = [('Use with transformers', transformers_code(exportable, card.hub))]
            code.append(('Patch embeddings', transformers_patches(exportable)))
        save_patch_head(exportable.encoder, folder)
        (folder / 'README.md').write_text(write_card(exportable, card, kind, code), encoding='utf-8')
        mode = (folder / 'README.md').stat().st_mode
        for path in folder.glob('*.safetensors'):
            path.chmod(mode)  # safetensors lets only their owner read them
        marker = ExportMarker(
            version=ExportMarker.NEWEST,
            format=kind,
            name=card.name,
            grafalign=__version__,
            input=exportable.input,
            files={p.name: file_digest(p) for p in sorted(folder.iterdir())},
        )
        marker.write(folder / MARKER)
    return marker


@contextlib.contextmanager
def _taking_its_name(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` when the context ends without an exception."""
    out = out.resolve()
    work = out.parent / f'.{out.name}.part'
    with exclusive(work):
        new, old = work / 'new', work / 'old'
        if old.exists() and not out.exists():
            old.rename(out)  # a run was killed between the two renames below
        check_out(out)
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir()
            yield new
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            new.rename(out)
        finally:
            if old.exists() and not out.exists():
                old.rename(out)
            shutil.rmtree(work, ignore_errors=True)
