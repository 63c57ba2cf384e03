"""The commands that work offline or from outside the service, one module each; `serving.cli` gives them their names."""
