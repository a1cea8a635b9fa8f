"""What a model can be asked about a set; each task turns embeddings into statistics."""
