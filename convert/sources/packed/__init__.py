"""Checkpoints that are quantized already: their weights, decoded row by row in the same pass. docs/sources.md."""
