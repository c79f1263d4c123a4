"""The model families as data, and what is special about their weights: rotary settings, the order of rows."""
