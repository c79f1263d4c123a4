"""Serving: a page to ask on, and an OpenAI-compatible API, over one loaded model, for this machine or its house."""
