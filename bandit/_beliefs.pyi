from bandit.types import FloatArray

def capped_lognormal(log_mean: float, log_sd: float, log_cap: float, expected: float) -> tuple[float, float]: ...

class Beliefs:
    def __init__(
        self,
        weights: tuple[float, float, float],
        cost_reference_usd: float,
        latency_reference_s: float,
        prices: FloatArray,
    ) -> None: ...
    def of(self, mean: FloatArray, variance: FloatArray, noise: FloatArray, input_tokens: float) -> FloatArray: ...
