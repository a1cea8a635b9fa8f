"""FAISS index, search, ranks and metrics."""

from grafalign.retrieval.index import TileIndex
from grafalign.retrieval.metrics import average_precision_at, recall_at

__all__ = ['TileIndex', 'average_precision_at', 'recall_at']
