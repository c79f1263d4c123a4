"""The key-value section of a GGUF: keys from config.json and the model card, and the vocabulary."""
