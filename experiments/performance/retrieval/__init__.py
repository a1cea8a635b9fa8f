"""Ranks and the index, measured beside bare products, the usual recall code and exact search."""
