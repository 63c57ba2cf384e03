from bandit.types import BoolArray, FloatArray

def tempered(sd: FloatArray, count: FloatArray, enough: float, least: float) -> FloatArray: ...
def floored(p: FloatArray, feasible: BoolArray, floor: float, weights: FloatArray | None) -> FloatArray: ...
def shaped(
    p: FloatArray,
    capped: BoolArray | None,
    refuge: BoolArray,
    cap: float,
    probes: FloatArray,
    most: float,
    allowed: BoolArray | None,
) -> FloatArray: ...
def drawn(p: FloatArray, u: float) -> int: ...
