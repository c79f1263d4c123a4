"""LoRA adapters: their arithmetic, PEFT folders, llama.cpp's own form."""
