"""Classic LoRA, Text-to-LoRA and Transformer² on the same tasks, graded, as one report."""
