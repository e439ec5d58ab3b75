"""One model for many people at once: requests that arrive, stream and end at any time."""
