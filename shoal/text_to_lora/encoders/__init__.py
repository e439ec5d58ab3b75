"""What a hypernetwork reads of a description: sentence vectors, or the backbone's own states."""
