"""Quantization levels: what a level is, and the type it gives to each tensor."""
