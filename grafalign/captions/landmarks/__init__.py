"""Landmarks of tiles: what a map knows of the ground that an image shows."""
