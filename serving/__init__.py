"""The service: HTTP, asyncio, storage and clocks around the library `bandit`.

`app` alone constructs what lives long. Nothing here is imported by `bandit` or `evaluation`.
"""
