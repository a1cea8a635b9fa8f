"""The application, what its commands share, and how it ends.

Results for programs go to standard output with `--json`; everything for people goes to standard error. Heavy imports
wait inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from grafalign.errors import GrafalignError, InputError, MachineError
from grafalign.escapes import printable
from grafalign.launch import end_with_parent
from grafalign.processes import this_team

if TYPE_CHECKING:
    from grafalign.report import Report

app = typer.Typer(
    help='Train vision-language models for satellite imagery without a single caption.',
    epilog='Exit codes: 0 done, 1 input that cannot be used, 2 no such command or option, 3 an artefact of another '
    'state or release, 4 an unfinished or damaged artefact, 5 a server or network, 6 another process is writing, '
    '7 disk, memory or a library is lacking, 130 interrupted.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={'help_option_names': ['-h', '--help']},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f'grafalign {version("grafalign")}')
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option('--version', callback=_show_version, is_eager=True, help='Print the version and end.')
    ] = False,
) -> None:
    """Train vision-language models for satellite imagery without a single caption."""


Json = Annotated[bool, typer.Option('--json', help='Print the result as JSON on standard output.')]
Workers = Annotated[int | None, typer.Option(help='Threads; the number of cores by default.', min=1)]
Processes = Annotated[int | None, typer.Option(help='Processes on this machine; one for every GPU by default.', min=1)]
Pretrained = Annotated[str | None, typer.Option(help='open_clip tag or checkpoint file, e.g. openai.')]
Set = Annotated[list[str] | None, typer.Option('--set', help='Override a setting of the file: key.subkey=value.')]


def main() -> None:
    """Run the command line; errors become one line and the exit code of their kind (`grafalign.errors`)."""
    from grafalign.console import err, quiet_libraries

    quiet_libraries()
    end_with_parent()
    if not this_team().first:  # the first of several processes speaks for all; errors are everyone's own
        err.quiet = True
        sys.stdout = io.StringIO()
    # GDAL keeps decoded blocks in a twentieth of the machine's memory by default, and every block is read once
    os.environ.setdefault('GDAL_CACHEMAX', '64')
    try:
        code = app(standalone_mode=False)  # the code of an exit that typer decides: 0 after --help, 130 after Ctrl-C
    except GrafalignError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except MemoryError:
        _fail(_NO_MEMORY, MachineError.exit_code)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            _fail(_NO_MEMORY, MachineError.exit_code)
        _fail(_os_sentence(error), (MachineError if error.errno in _LACKING else InputError).exit_code)
    except Exception as error:
        if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
            _fail(_NO_MEMORY, MachineError.exit_code)
        if not hasattr(error, 'show'):
            raise
        error.show()  # a wrong command line; typer brings its own copy of click's errors, so their type says nothing
        sys.exit(getattr(error, 'exit_code', 2))
    if code == 130:
        _fail('Interrupted; run the same command again to go on where it stopped.', code)
    sys.exit(code)


_LACKING = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO)
"""What the system says where the machine is at fault, not what was given."""
_NO_MEMORY = (
    'There is not enough memory; close other programs, use fewer --workers, or a larger machine. What is done is kept.'
)
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory|std::bad_alloc", re.IGNORECASE)
"""What torch, Arrow and FAISS say."""


def _fail(message: str, code: int) -> NoReturn:
    print(f'Error: {printable(message)}', file=sys.stderr, flush=True)
    if code == 130:
        os._exit(code)  # after Ctrl-C nothing waits for threads that still read
    sys.exit(code)


def _os_sentence(error: OSError) -> str:
    where = f'{error.filename}: ' if error.filename else ''
    remedy = 'check that the path exists, that you may use it and that the disk is not full, then run it again.'
    return f'{where}{error.strerror or error}; {remedy}'


def show(metadata: dict[str, Any], title: str, as_json: bool) -> None:
    """A flat dictionary as a table, or as JSON."""
    if as_json:
        print(json.dumps(metadata))
        return
    from grafalign import console

    rows = []
    for key, value in metadata.items():
        for name, part in value.items() if isinstance(value, dict) else [(key, value)]:
            label = key if name == key else f'{key}: {name}'
            rows.append(
                (
                    label,
                    f'{part:,}' if isinstance(part, int) else f'{part:.4g}' if isinstance(part, float) else str(part),
                )
            )
    console.table(title, ('', ''), rows)


def show_results(report: Report, out: Path, as_json: bool) -> None:
    """The table of results and where the report lies."""
    if as_json:
        print(report.model_dump_json())
        return
    from grafalign import console
    from grafalign.benchmarks.sandbox import result_rows

    head, *rows = result_rows(report)
    if rows:
        console.table('results on held-out blocks', head, rows)
    if report.seconds:
        console.table('seconds', ('step', 's'), [(k, f'{v:.1f}') for k, v in report.seconds.items()])
    console.log(f'{out / "report.html"}')
