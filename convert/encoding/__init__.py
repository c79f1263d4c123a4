"""Encoding: weights into ggml's blocks: the formats as data, a reference encoder, and a fast one."""
