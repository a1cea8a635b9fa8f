"""Make the tiny CLIP that ships with grafalign: `python experiments/sandbox/train_clip.py`.

Photos and captions come from worlds 9001 to 9003; its accuracy is read off photos of world 9004. The quickstart runs
in worlds 0 to 2, so the model has never seen the places that it is used on, and no tile of any world.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path

from grafalign.sandbox.clip_training import TINY_CLIP_DIR, train_clip

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=TINY_CLIP_DIR)
    parser.add_argument('--photos', type=int, default=16000, help='photos in each world')
    parser.add_argument('--epochs', type=int, default=16)
    args = parser.parse_args()
    seeds = (9001, 9002, 9003, 9004)
    result = train_clip(args.out, seeds, args.photos, args.epochs)
    record = {
        'what': 'zero-shot accuracy of the tiny CLIP on held-out ground photos that show mainly one class',
        **result,
        'worlds': list(seeds),
        'epochs': args.epochs,
        'command': f'python experiments/sandbox/train_clip.py --photos {args.photos} --epochs {args.epochs}',
        'versions': {name: version(name) for name in ('torch', 'open_clip_torch', 'numpy')},
        'machine': f'{platform.machine()}, CPU',
    }
    (args.out / 'training.json').write_text(json.dumps(record, indent=2) + '\n')
    print(json.dumps(record, indent=2))
