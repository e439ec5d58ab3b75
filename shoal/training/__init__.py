"""Training loops and objectives that know no product: LoRA, evolution, checkpoints."""
