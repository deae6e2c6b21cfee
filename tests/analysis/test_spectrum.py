"""Spectra of token maps."""

import math

import numpy as np
import pytest
import torch

from timm_mvhybrid.analysis import token_spectrum
from timm_mvhybrid.runtime.errors import ParameterError


def wave(rows, columns, size=16):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.cos(2 * math.pi * (rows * y + columns * x).double() / size)[None, None]


@pytest.mark.parametrize(
    ("rows", "columns", "ring"), [(0, 3, 3), (5, 0, 5), (3, 4, 5), (2, 2, 2), (8, 8, 11)]
)
def test_a_wave_is_in_the_ring_of_its_frequency(rows, columns, ring):
    found = token_spectrum(wave(rows, columns))
    assert found.energy[0, ring] == pytest.approx(1.0)
    assert found.dc_share[0] == pytest.approx(0.0, abs=1e-20)
    assert found.high_share[0] == pytest.approx(float(ring >= 4))


def test_equal_tokens_are_all_dc():
    found = token_spectrum(torch.full((2, 3, 8, 8), 0.5))
    assert found.dc_share == pytest.approx([1.0, 1.0])


def test_white_noise_has_as_much_in_each_frequency():
    """Without DC 211 of 255 frequencies are at a distance of 4 or more, 0.828."""
    found = token_spectrum(torch.randn(8, 256, 16, 16))
    # 8 · 256 · 211 squares of normals
    assert found.high_share.mean() == pytest.approx(211 / 255, abs=5e-3)
    assert found.log_amplitude_drop == pytest.approx(0.0, abs=0.1)
    np.testing.assert_allclose(found.energy.sum(1), 1.0)


def test_energy_is_that_of_the_tokens():
    """Parseval: mean square of a map is DC and the rest."""
    maps = torch.randn(1, 1, 8, 8, dtype=torch.float64) + 0.7
    share = float(maps.mean() ** 2 / maps.square().mean())
    assert token_spectrum(maps).dc_share[0] == pytest.approx(share)


def test_tokens_and_maps_of_a_square_grid_are_the_same():
    maps = torch.randn(2, 5, 6, 6)
    tokens = token_spectrum(maps.flatten(2).transpose(1, 2))
    assert np.array_equal(tokens.energy, token_spectrum(maps).energy)


def test_smoothing_lowers_the_drop():
    maps = torch.randn(1, 64, 16, 16)
    smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(maps, (1, 1, 1, 1), "circular"), 3, 1)
    assert token_spectrum(smooth).log_amplitude_drop[0] < token_spectrum(maps).log_amplitude_drop[0] - 0.5


@pytest.mark.parametrize("shape", [(2, 17, 4), (2, 4, 1, 8), (4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ParameterError, match="features"):
        token_spectrum(torch.zeros(shape))
