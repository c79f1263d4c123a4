"""Everything that holds llama.cpp: models in child processes, contexts, prompts, what fits this machine."""
