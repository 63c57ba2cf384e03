"""The store of answers: how long, how many, how much."""

from __future__ import annotations

from serving.traffic.cache import ENTRY_BYTES, AnswerCache, Stored


def stored(size=10, tokens=None):
    return Stored(b"x" * size, "pm-1", "a", tokens, 0.25)


def test_an_answer_is_kept_until_its_time_is_over():
    cache = AnswerCache(ttl_s=10, max_entries=5, max_bytes=10_000)
    assert cache.put(b"k", stored(), now=100.0)
    assert cache.get(b"k", 109.5) == (stored(), 9.5)
    assert cache.get(b"k", 110.0) is None
    assert (len(cache), cache.bytes) == (0, 0)


def test_the_least_recently_used_goes_first():
    cache = AnswerCache(ttl_s=10, max_entries=2, max_bytes=10_000)
    cache.put(b"a", stored(), 0.0)
    cache.put(b"b", stored(), 0.0)
    cache.get(b"a", 1.0)
    cache.put(b"c", stored(), 1.0)
    assert [cache.get(key, 1.0) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert cache.evicted == 1


def test_bytes_and_tokens_are_bounded_and_counted():
    """Three answers of 100 bytes fit into exactly their size, 15 tokens hold one of 10 but not two."""
    cache = AnswerCache(ttl_s=10, max_entries=9, max_bytes=3 * (100 + ENTRY_BYTES))
    for i in range(5):
        cache.put(bytes([i]), stored(100), 0.0)
    assert (len(cache), cache.bytes) == (3, 3 * (100 + ENTRY_BYTES))
    cache = AnswerCache(ttl_s=10, max_entries=9, max_bytes=10_000, max_tokens=15)
    cache.put(b"a", stored(tokens=10), 0.0)
    cache.put(b"b", stored(tokens=10), 0.0)
    assert (len(cache), cache.tokens) == (1, 10)


def test_what_alone_is_too_large_is_not_kept_and_drives_nothing_out():
    cache = AnswerCache(ttl_s=10, max_entries=9, max_bytes=2_000, max_tokens=15)
    cache.put(b"a", stored(), 0.0)
    assert not cache.put(b"b", stored(2_000), 0.0)
    assert not cache.put(b"c", stored(tokens=16), 0.0)
    assert len(cache) == 1


def test_a_second_answer_replaces_the_first():
    cache = AnswerCache(ttl_s=10, max_entries=9, max_bytes=10_000)
    cache.put(b"a", stored(100), 0.0)
    cache.put(b"a", stored(10), 5.0)
    assert (len(cache), cache.bytes) == (1, 10 + ENTRY_BYTES)
    assert cache.get(b"a", 14.0) == (stored(10), 9.0)
    assert cache.clear() == 1
    assert (len(cache), cache.bytes) == (0, 0)
