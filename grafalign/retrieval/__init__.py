"""FAISS index, search, ranks and metrics."""

from grafalign.retrieval.index import FAISS_VERSION, TileIndex
from grafalign.retrieval.metrics import average_precision_at, recall_at

__all__ = ['FAISS_VERSION', 'TileIndex', 'average_precision_at', 'recall_at']
