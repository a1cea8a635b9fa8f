"""The page `experiments/performance/retrieval.md` from `results/retrieval.json`."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from experiments.performance.retrieval.__main__ import RESULT

PAGE = Path(__file__).parent.parent / 'retrieval.md'


def main() -> None:
    """Write the page."""
    content = json.loads(RESULT.read_text())
    parts = [_HEAD.format(machine=_machine(content['ranks']), command=content['ranks']['command'])]
    parts += [_ranks(content['ranks']['rows'], content.get('large', {}).get('rows', []))]
    parts += [_index(content['index'])]
    PAGE.write_text('\n'.join(parts))


def _machine(part: dict[str, Any]) -> str:
    m, v = part['machine'], part['versions']
    return f'{m["cores"]} cores, {m["memory_gib"]} GiB; torch {v["torch"]}, faiss {v["faiss"]}, numpy {v["numpy"]}'


_HEAD = """# Ranks and indexes, measured

{machine}. `{command}`, then `python -m experiments.performance.retrieval.table`.
"""


_RANKS = """## Ranks without the score matrix

N queries against N items at 512 dimensions, five positives each (`grafalign/retrieval/ranks.py`). The bare product
multiplies the same blocks and throws the scores away. Memory is the peak above what stood before, embeddings apart.
One-hot recall is the usual code: the whole score matrix, a boolean one beside it, the top k as one-hot rows in batches
of 64; at 100,000 its two matrices alone would take 50 GB. The 300,000 were run once, for the memory, beside other work:
their seconds say nothing. Average precision needs the ranks of all five positives, of which four are random here.

| N | way | seconds | of the bare product | GB above | R@1, R@10 |
|---:|---|---:|---:|---:|---:|"""
_INDEX = """## A search among {count:,} vectors

Vectors are made up (`retrieval/vectors.py`): 4,000 kinds of places, some common and most rare, each a patch of 18
dimensions in a cone. Two random ones have cosine {mean_cosine}, nearest neighbours {nearest_cosine}, and the intrinsic
dimension around a vector is {dimension} (by maximum likelihood). Of real ones, CLIP ViT-B/32 on the 1,005 images of
WHU-RS19, these are 0.675, 0.928 and 9.8. Recall at 10 is measured on 2,000 queries that tuned nothing; all ways answer
the same queries, in turns, three times. The first two hold the vectors in memory; the others are what is held in
memory beside the vectors on disk (2,048 MB), which score the candidates again. On these clusters a graph has to visit
4,096 nodes to find what 16 cells of 4,000 hold: so `hnsw` is made only if asked for.

| way | build, s | index, MB | recall@10 | queries a second | of exact FAISS | one query, ms |
|---|---:|---:|---:|---:|---:|---:|"""


def _ranks(rows: list[dict[str, Any]], large: list[dict[str, Any]]) -> str:
    lines = [_RANKS]
    for count in sorted({r['count'] for r in rows}):
        here = [r for r in rows if r['count'] == count]
        bare = median(r['seconds'] for r in here if r['way'] == 'bare product')
        for way in dict.fromkeys(r['way'] for r in here):
            mine = [r for r in here if r['way'] == way]
            seconds = median(r['seconds'] for r in mine)
            lines.append(_rank_row(mine[0], seconds, f'{seconds / bare:.2f}'))
    lines += [_rank_row(r, r['seconds'], '') for r in large]
    return '\n'.join([*lines, ''])


def _rank_row(row: dict[str, Any], seconds: float, ratio: str) -> str:
    v = row['values']
    recall = f'{v["r@1"]:.4f}, {v["r@10"]:.4f}' if v else ''
    return f'| {row["count"]:,} | {row["way"]} | {seconds:.1f} | {ratio} | {row["gb_above"]:.2f} | {recall} |'


def _index(part: dict[str, Any]) -> str:
    lines = [_INDEX.format(count=part['count'], **part['likeness'])]
    exact = next(r['queries_per_s'] for r in part['rows'] if r['way'].startswith('FAISS exact'))
    for r in part['rows']:
        times = f'{r["queries_per_s"] / exact:.1f}'
        cells = (
            f'{r["build_s"]:.0f}',
            f'{r["index_mb"]:.0f}',
            f'{r["recall_at_10"]:.4f}',
            f'{r["queries_per_s"]:,.0f}',
        )
        lines.append(f'| {r["way"]} | {" | ".join(cells)} | {times} | {r["one_query_ms"]:.2f} |')
    return '\n'.join([*lines, ''])


if __name__ == '__main__':
    main()
