"""Text-to-LoRA: a hypernetwork turns a task description into a LoRA in one forward pass."""
