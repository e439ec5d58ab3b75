"""The web page, a client of the service."""
