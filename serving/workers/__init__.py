"""Several processes on one port: who starts them, and what each says to the others."""
