"""Importance matrices: a model over calibration text, and the text checked against benchmarks."""
