"""Writing captions from landmarks."""
