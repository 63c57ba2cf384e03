from bandit.types import FloatArray

FEW_ARMS: int
NODES_PER_ARM: int
MIN_SD: float
REACH: float
SMALL: float

def few(mean: FloatArray, sd: FloatArray, compliance: FloatArray, standard_nodes: FloatArray) -> FloatArray | None: ...
def shares(mean: FloatArray, scale: FloatArray, weight: FloatArray, nodes: FloatArray) -> FloatArray: ...
def maximum(mean: FloatArray, scale: FloatArray, weight: FloatArray, nodes: FloatArray) -> FloatArray: ...
