"""What an adapter costs for the shapes of larger models: 117M, 345M and 7B parameters.

    python3 test_larger_model.py

No weights of them are needed: generation time, peak memory and adapter size follow from the shape. Each shape
is measured in a process of its own. The same checks run as a slow test of the suite.
"""

import pytest

from shoal.evaluation.scaling import GUIDE_SHAPES, ShapeCost, measure_shapes, scaling_table

# Size -> (least, most) parameters of the base model.
SIZES = {"117M": (115e6, 130e6), "345M": (340e6, 360e6), "7B": (6.5e9, 7e9)}
SECONDS, BYTES = 10, 4e9  # what generating may take on any machine that this fits


def check(size: str, cost: ShapeCost) -> None:
    """See that a cost is that of the size, and within bounds.

    Raises:
        AssertionError: it is not.
    """
    least, most = SIZES[size]
    assert least <= cost.base_parameters <= most, cost
    assert cost.adapter_bytes == 4 * cost.adapter_parameters < 0.05 * cost.base_parameters, cost
    assert 0 < cost.generation_seconds < SECONDS and 0 < cost.peak_bytes < BYTES, cost


@pytest.mark.slow
@pytest.mark.parametrize("size", GUIDE_SHAPES)
def test_larger_model(size: str) -> None:
    """Each shape by itself."""
    check(size, measure_shapes([GUIDE_SHAPES[size]])[0])


def main() -> None:
    """Measure all shapes and print them."""
    costs = measure_shapes(list(GUIDE_SHAPES.values()))
    print(scaling_table(costs))
    for size, cost in zip(GUIDE_SHAPES, costs, strict=True):
        check(size, cost)
    print(f"\n{len(costs)} of {len(costs)} shapes fit")


if __name__ == "__main__":
    main()
