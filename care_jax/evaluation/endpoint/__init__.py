"""An OpenAI-compatible endpoint: HTTP, a cache of replies, and a client with retries and a rate limit."""
