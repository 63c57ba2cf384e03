"""How each kind of endpoint is spoken to: OpenAI's protocol, Anthropic's, inference servers'."""
