"""What an operator sees while the service runs: live figures, decisions explained, a time line, and the page itself."""
