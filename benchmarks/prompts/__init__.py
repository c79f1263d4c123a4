"""Prompts: templates, and the requests that a run makes of items."""
