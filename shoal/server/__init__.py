"""The service over HTTP: OpenAI's API, adapters, jobs, limits and metrics; and its client."""
