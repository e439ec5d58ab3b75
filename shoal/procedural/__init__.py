"""Tasks that are generated in code, without data or a hub: `shoal.procedural.catalogue` lists them."""
