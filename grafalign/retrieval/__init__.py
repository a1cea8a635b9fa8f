"""Vectors: exact and approximate neighbours, ranks and metrics."""

from grafalign.retrieval.exact import FAISS_VERSION, check_vectors, nearest
from grafalign.retrieval.metrics import average_precision_at, recall_at
from grafalign.retrieval.ranks import Ranks, average_precision, hits_at, positive_ranks

__all__ = [
    'FAISS_VERSION',
    'Ranks',
    'average_precision',
    'average_precision_at',
    'check_vectors',
    'hits_at',
    'nearest',
    'positive_ranks',
    'recall_at',
]
