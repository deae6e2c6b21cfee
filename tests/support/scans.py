"""Inputs of the scans, drawn at random."""

import torch


def scan_inputs(
    length, *, batch=2, d_inner=6, d_state=3, groups=None, options="Dzb", dtype=torch.float64, seed=0
):
    """Draws the arguments of the selective scan; ``options`` names the optional ones: D, z, b for the bias."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shape = {None: (batch, d_state, length), "constant": (d_inner, d_state)}.get(
        groups, (batch, groups, d_state, length)
    )
    inputs = {
        "u": draw(batch, d_inner, length),
        "delta": draw(batch, d_inner, length),
        "A": -draw(d_inner, d_state).exp(),
        "B": draw(*shape),
        "C": draw(*shape),
        "D": draw(d_inner) if "D" in options else None,
        "z": draw(batch, d_inner, length) if "z" in options else None,
        "delta_bias": draw(d_inner) if "b" in options else None,
    }
    return {name: None if x is None else x.to(dtype).requires_grad_() for name, x in inputs.items()}


def complex_scan_inputs(length, *, batch=2, d_inner=6, pairs=3, groups=1, optional=True, dtype=torch.float64):
    """Draws the arguments of the scan with complex poles, token-major, with skip weights and bias or without."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "u": draw(batch, length, d_inner),
        "delta": draw(batch, length, d_inner),
        "A": -draw(d_inner, pairs).exp(),
        "w": 3.0 * draw(d_inner, pairs),
        "B": draw(batch, length, groups, 2 * pairs),
        "C": draw(batch, length, groups, 2 * pairs),
        "D": draw(d_inner) if optional else None,
        "delta_bias": draw(d_inner) if optional else None,
    }
    return {name: None if x is None else x.to(dtype).requires_grad_() for name, x in inputs.items()}
