"""The reporting endpoint: OpenAI-compatible protocol, two engines behind one interface, deployment."""
