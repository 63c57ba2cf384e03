"""Measurements behind every figure the README states; run as modules, each says what it measured and on what."""
