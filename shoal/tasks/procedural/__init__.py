"""Tasks that are generated in code, without data or a hub: `shoal.tasks.procedural.catalogue` lists them."""
