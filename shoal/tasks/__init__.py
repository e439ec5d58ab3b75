"""Tasks and their examples: records, loaders, metrics, rewards, and tasks that are made in code."""
