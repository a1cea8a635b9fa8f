"""The command line: help that answers at once, JSON for programs, and the whole quickstart in small."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = ('quickstart', 'sandbox', 'pair', 'embed', 'filter', 'train', 'export', 'evaluate', 'run')


def grafalign(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run([sys.executable, '-m', 'grafalign', *args], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    """`grafalign --help` loads neither torch nor rasterio nor matplotlib: that is why it answers at once."""
    code = (
        'import sys\nsys.argv = ["grafalign", "--help"]\nfrom grafalign.cli import main\n'
        'try:\n    main()\nexcept SystemExit:\n    pass\n'
        'print([m for m in ("torch", "rasterio", "matplotlib", "faiss", "geopandas", "numpy") if m in sys.modules])'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert 'quickstart' in out and out.strip().endswith('[]')


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_a_help_with_one_example(command: str) -> None:
    """The help of each command shows how to call it."""
    out = grafalign(command, '--help')
    assert out.returncode == 0 and f'Example: grafalign {command}' in ' '.join(out.stdout.split())


def test_results_are_json_on_request(own_store: Path) -> None:
    """With --json, standard output is one JSON document and nothing else."""
    from grafalign.sandbox import TINY_CLIP_DIR

    out = grafalign('embed', str(own_store), '--model', str(TINY_CLIP_DIR), '--json')
    assert out.returncode == 0 and set(json.loads(out.stdout)) == {'photos', 'unreadable', 'dimensions'}


def test_an_unknown_option_is_not_a_traceback() -> None:
    """A misspelt option is named, with exit code 2."""
    out = grafalign('pair', '--reciep', 'x')
    assert out.returncode == 2 and '--reciep' in out.stderr and 'Traceback' not in out.stderr


@pytest.mark.slow
def test_a_small_quickstart_writes_its_report(tmp_path: Path) -> None:
    """The whole chain with few photos: the report's keys are there, its page holds pictures and needs no network."""
    out = grafalign('quickstart', '--out', str(tmp_path / 'q'), '--photos', '3000', '--json')
    assert out.returncode == 0, out.stderr
    report = json.loads((tmp_path / 'q' / 'report.json').read_text())
    assert json.loads(out.stdout) == report
    assert set(report['pairs']) == {'photos', 'rejected', 'tiles', 'pairs'}
    for task, key, models in (
        ('classification', 'accuracy', ('frozen_clip', 'grafalign_image', 'supervised')),
        ('segmentation', 'miou', ('frozen_clip', 'grafalign_patch', 'supervised')),
        ('retrieval', 'map_at_20', ('frozen_clip', 'grafalign_image')),
    ):
        for model in models:
            value = report[task][model][key]
            assert value['low'] <= value['value'] <= value['high']
    assert set(report['seconds']) == {'sandbox', 'pair', 'embed', 'train', 'evaluate', 'total'}
    page = (tmp_path / 'q' / 'report.html').read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) >= 7 and all(base64.b64decode(p)[:4] == b'\x89PNG' for p in pictures)
    assert not re.search(r'(src|href)="(?!data:)', page)
    again = grafalign('quickstart', '--out', str(tmp_path / 'q'), '--photos', '3000', '--json')
    assert json.loads(again.stdout)['pairs'] == report['pairs']
