"""Tasks: from published rows to checked items, and the samples drawn from them."""
