"""Student's t without SciPy."""

import math

import pytest

from lightning_pce.intervals._student import normal_mass, t_for, t_mass
from tests.helpers.intervals_by_hand import t_by_integration

# From the printed tables: two-sided level, degrees, t.
TABLE = [
    (0.95, 1, 12.706),
    (0.95, 2, 4.303),
    (0.95, 3, 3.182),
    (0.95, 4, 2.776),
    (0.95, 19, 2.093),
    (0.95, 29, 2.045),
    (0.95, 30, 2.042),
    (0.95, 99, 1.984),
    (0.95, 127, 1.979),
    (0.9, 10, 1.812),
    (0.9, 19, 1.729),
    (0.99, 19, 2.861),
    (0.99, 127, 2.615),
    (0.5, 20, 0.687),
    (0.999, 20, 3.850),
]


@pytest.mark.parametrize(("level", "degrees", "t"), TABLE)
def test_t_is_that_of_the_tables(level, degrees, t):
    assert t_for(level, degrees) == pytest.approx(t, abs=6e-4)
    assert t_mass(t_for(level, degrees), degrees) == pytest.approx(level, abs=1e-12)


@pytest.mark.parametrize("degrees", [7, 8, 19, 64, 127])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.999])
def test_t_is_that_of_the_integrated_density(level, degrees):
    assert t_for(level, degrees) == pytest.approx(t_by_integration(level, degrees), rel=1e-6)


def test_many_degrees_are_nearly_normal():
    assert normal_mass(1.959964) == pytest.approx(0.95, abs=1e-6)
    assert t_mass(1.96, 100_000) == pytest.approx(normal_mass(1.96), abs=1e-5)
    assert math.isfinite(t_for(0.999999, 1))
