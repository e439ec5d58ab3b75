"""Training of adapters and hypernetworks: resumable, logged and deterministic; needs the extra `train`."""
