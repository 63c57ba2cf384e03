"""The most that one attempt can cost, before it is made.

Arithmetic on a call, a price and bounds; nothing is reserved or sent here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.wire import answers_asked

if TYPE_CHECKING:
    from bandit.types import Price
    from serving.wire import Call

__all__ = ["WorstCase", "worst_case"]


@dataclass(frozen=True, slots=True)
class WorstCase:
    """At most `usd` (None: no price, the cost is unknown) and `tokens`, input and output together.

    `max_tokens`: the length that this assumes for each answer where the caller named none; None: it named one, or
    there are no answers to bound. Only a call that is sent with it is bounded by this.
    """

    usd: float | None
    tokens: int
    max_tokens: int | None = None


def worst_case(call: Call, price: Price | None, max_output_tokens: int | None, assumed_output_tokens: int) -> WorstCase:
    """The most an attempt can take at a model of this `price` whose answers have at most `max_output_tokens`, if known.

    The input counts as many tokens as it has bytes: no byte-level tokenizer makes more. It does not hold for what an
    endpoint adds by itself, such as images fetched from a URL.
    """
    output, assumed = 0, None
    if call.kind in ("chat/completions", "completions"):
        choices = answers_asked(call.kind, call.body)
        longest = max_output_tokens or assumed_output_tokens
        if call.max_output_tokens is None:
            output, assumed = longest * choices, longest
        elif max_output_tokens is None:
            output = call.max_output_tokens
        else:
            output = min(call.max_output_tokens, max_output_tokens * choices)
    elif call.kind == "infer" and price is not None and price.output_per_million:
        output = max_output_tokens or assumed_output_tokens  # by what it says of itself: no field of it is known
    tokens = call.worst_input_tokens + output
    if price is None:
        return WorstCase(None, tokens, assumed)
    usd = price.cost_usd(call.worst_input_tokens, output)
    if price.cached_input_per_million is not None:  # a cache may cost more than none
        usd = max(usd, price.cost_usd(call.worst_input_tokens, output, call.worst_input_tokens))
    return WorstCase(usd, tokens, assumed)
