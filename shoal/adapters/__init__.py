"""Adapters as values: LoRA and singular-value experts, how they attach to a model, their files and their arithmetic."""
