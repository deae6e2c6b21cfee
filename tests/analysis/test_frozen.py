"""Frozen gains: equal to the closed form where coefficients are constant, and what they are where they are not."""

import copy

import numpy as np
import pytest
import timm
import torch

from timm_mvhybrid.analysis import frozen_gain, transfer_function
from timm_mvhybrid.layers import EinFFT, HydraMixer, MambaVisionMixer, VimMixer
from timm_mvhybrid.runtime.errors import ParameterError

OMEGA = np.linspace(0.0, np.pi, 5)


def constant(mixer_class, dim=8, length=400, **options):
    """A mixer and tokens that are all equal, so that δ, B and C are, but where a convolution meets the end."""
    torch.manual_seed(0)
    mixer = mixer_class(dim, d_conv=1, **options)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            # so that all states settle within a quarter of the tokens
            if name.endswith(("dt_proj.bias", "dt_proj_b.bias", "dt_bias")):
                parameter.fill_(0.5)
            elif name in ("D", "D_b"):
                parameter.normal_()
    return mixer, torch.randn(1, 1, dim).expand(1, length, dim)


def closed_form(A_log, A_imag, delta, B, C, D, channel):
    A, B, C = (x.detach().numpy() for x in (-A_log[channel].exp(), B, C))
    if A_imag is not None:
        half = len(A)
        A = A + 1j * A_imag[channel].detach().numpy()
        B, C = B[:half] + 1j * B[half:], C[:half] + 1j * C[half:]
        A, B, C = (np.concatenate([x, x.conj()]) for x in (A, B, C))
    return np.abs(transfer_function(A, delta[channel].item(), B, C, D, OMEGA))


@pytest.mark.parametrize("eigenvalues", ["real", "complex"])
@pytest.mark.parametrize("mixer_class", [MambaVisionMixer, VimMixer])
def test_constant_coefficients_give_the_closed_form(mixer_class, eigenvalues):
    mixer, tokens = constant(mixer_class, eigenvalues=eigenvalues)
    found = frozen_gain(mixer, tokens, OMEGA)
    exact = copy.deepcopy(mixer).double()
    inputs = exact.scan_inputs(tokens.double())
    scans = [(inputs[0], exact.A_log, exact.A_imag, exact.D, exact.dt_proj.bias)]
    if mixer_class is VimMixer:
        scans.append((inputs[1], exact.A_b_log, exact.A_b_imag, exact.D_b, exact.dt_proj_b.bias))
    assert found.total.shape == (1, exact.d_inner * len(scans), 5)
    assert (found.settled > 0.5).all()
    for number, (scanned, A_log, A_imag, D, bias) in enumerate(scans):
        delta = torch.nn.functional.softplus(scanned.dt[0, 0] + bias).detach()
        B, C = scanned.B[0, 0, 0], scanned.C[0, 0, 0]
        for channel in range(exact.d_inner):
            index = number * exact.d_inner + channel
            for skip, names in ((D[channel].item(), ("total", "coherent")), (None, ())):
                expected = closed_form(A_log, A_imag, delta, B, C, skip, channel)
                for name in names or ("total_without_skip", "coherent_without_skip"):
                    np.testing.assert_allclose(getattr(found, name)[0, index], expected, rtol=1e-6)


def test_hydras_matrix_is_two_late_scans_and_a_diagonal():
    mixer, tokens = constant(HydraMixer, dim=8, headdim=4, d_state=4)
    found = frozen_gain(mixer, tokens, OMEGA)
    exact = copy.deepcopy(mixer).double()
    scanned, _ = exact.scan_inputs(tokens.double())
    late = np.exp(-1j * OMEGA)
    assert found.total.shape == (1, 4, 5)
    for head in range(4):
        A, D = -exact.A_log[head].exp().item(), exact.diagonal(scanned.x)[0, 0, head].item()
        parts = []
        for direction, shift in ((0, late), (1, late.conj())):
            delta = torch.nn.functional.softplus(
                scanned.dt[0, 0, direction, head] + exact.dt_bias[head]
            ).item()
            weights = (scanned.B[0, 0, direction, 0] * scanned.C[0, 0, direction, 0]).sum().item()
            own = transfer_function([A], delta, 1.0, weights, None, OMEGA if direction == 0 else -OMEGA)
            parts.append(shift * own)
        states = sum(parts)
        np.testing.assert_allclose(found.coherent_without_skip[0, head], np.abs(states), rtol=1e-6)
        np.testing.assert_allclose(found.total[0, head], np.abs(states + D), rtol=1e-6)


def test_the_transient_is_left_out_where_there_is_room_and_said_where_there_is_none():
    mixer, tokens = constant(MambaVisionMixer, length=30)
    assert (frozen_gain(mixer, tokens, 0.0).settled == 0).any()
    mixer, tokens = constant(MambaVisionMixer, length=300)
    assert (frozen_gain(mixer, tokens, 0.0).settled > 0.5).all()


def test_total_is_at_least_coherent_and_a_skip_hides_the_states():
    model = timm.create_model("test_mvhybrid").eval()
    found = frozen_gain((model, 1), torch.randn(2, 3, 64, 64), OMEGA)
    for suffix in ("", "_without_skip"):
        total, coherent = getattr(found, f"total{suffix}"), getattr(found, f"coherent{suffix}")
        assert (total >= coherent * (1 - 1e-12)).all()
    assert found.total.mean() == pytest.approx(1.0, abs=0.05)
    assert found.total_without_skip.mean() < 0.05


def test_gains_of_a_block_are_those_of_its_mixer_on_normalised_tokens():
    model = timm.create_model("test_vim_einfft").eval()
    block, tokens = model.blocks[0], torch.randn(1, 17, 64)
    with torch.no_grad():
        normalised = block.norm1(tokens)
    by_block, by_mixer = frozen_gain(block, tokens, 1.0), frozen_gain(block.mixer, normalised, 1.0)
    assert np.array_equal(by_block.total, by_mixer.total)


@pytest.mark.parametrize(
    ("layer", "images", "message"),
    [
        (EinFFT(8), torch.zeros(1, 4, 8), "EinFFT"),
        (MambaVisionMixer(8), torch.zeros(1, 3, 16, 16), "model, number"),
    ],
)
def test_layers_without_a_scan_and_images_without_a_model_are_refused(layer, images, message):
    with pytest.raises(ParameterError, match=message):
        frozen_gain(layer, images, 0.0)


def test_blocks_that_are_not_there_are_refused():
    model = timm.create_model("test_mvhybrid")
    with pytest.raises(ParameterError, match="block 9"):
        frozen_gain((model, 9), torch.zeros(1, 3, 64, 64), 0.0)
