"""Estimators of a policy's value from logged rounds, each a short pure module from `Rounds` to `Terms`."""
