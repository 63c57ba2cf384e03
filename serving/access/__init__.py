"""Who may call, what they may use, and what they may spend."""
