"""From a checkpoint (and adapters) to GGUF files, in one streaming pass."""
