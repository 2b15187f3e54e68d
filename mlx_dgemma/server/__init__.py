"""The server: OpenAI's and Anthropic's ways of asking, over one engine; see docs/server.md."""
