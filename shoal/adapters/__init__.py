"""Adapters as values: LoRA and singular-value experts, how they attach, their files and their arithmetic."""
