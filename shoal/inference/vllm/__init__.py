"""vLLM as the engine: another process, usually on a GPU, whose adapters our registry drives."""
