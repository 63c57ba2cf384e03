"""What the service says of its own doing, call by call: traces and log lines."""
