"""What a model to convert comes as: a checkpoint folder or a GGUF file, and its stored tensors."""
