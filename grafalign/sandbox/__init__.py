"""A small procedural world: the offline default and the test bench."""
