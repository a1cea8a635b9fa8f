"""Readers of what people have: shards, tables of links, published caption files, pair stores."""
