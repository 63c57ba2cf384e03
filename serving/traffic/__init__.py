"""What stands between a call and the policy: overload, shares, canaries, sessions, caches."""
