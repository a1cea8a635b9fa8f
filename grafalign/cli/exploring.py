"""The command that serves the page on a person's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grafalign.cli.app import app
from grafalign.errors import InputError


@app.command()
def explore(
    index: Annotated[Path, typer.Argument(help='Folder of an index (`grafalign index`).')],
    field: Annotated[
        list[Path] | None, typer.Option(help="Field whose scene and heat are shown; of the index's model; repeatable.")
    ] = None,
    store: Annotated[Path | None, typer.Option(help='Pair store whose ground photos are shown.')] = None,
    tuned: Annotated[
        Path | None, typer.Option(help='words.npz of `tune-words`: a query that is one of its classes means it.')
    ] = None,
    host: Annotated[
        str, typer.Option(help='Address to listen at; the page of another one than this machine asks for a token.')
    ] = '127.0.0.1',
    port: Annotated[int, typer.Option(help='Port; 0 for any that is free.', min=0, max=65535)] = 8470,
    model: Annotated[str | None, typer.Option(help='Where the model of the index is now, if it moved.')] = None,
    clip: Annotated[str | None, typer.Option('--clip', help='CLIP of a GRAFT checkpoint, if it moved.')] = None,
) -> None:
    """Explore an index in a browser: search by words, pictures and places, with heat, scenes and photos on a map.

    Example: grafalign explore runs/index --field runs/field --store store
    """
    from grafalign.errors import MachineError

    try:
        from grafalign.explore.serve import serve
    except ImportError as error:
        if error.name not in ('fastapi', 'uvicorn', 'starlette'):
            raise
        raise MachineError("`grafalign explore` needs FastAPI; `pip install 'grafalign[explore]'`.") from None
    if not host.strip():
        raise InputError('--host is empty; give an address, such as 127.0.0.1.')
    serve(index, field or [], store, tuned, host, port, model, clip)
