"""The Vision Mamba mixer: two causal scans, one over the tokens and one over the reversed tokens."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.causal_conv import causal_conv_silu
from .eigenvalues import frequencies, initialize_eigenvalues, num_poles, scan
from .float32 import KeepsFloat32, float32_unless_wider
from .scan_tokens import ScanTokens
from .step_size import StepProjection, initial_step_bias


class VimMixer(KeepsFloat32):
    """Mixes tokens by a forward and a backward selective scan ("bimamba v2") with shared input and output projections.

    Each direction has its own convolution, ``x_proj``, ``dt_proj``, ``A_log`` and ``D`` (suffix ``_b`` for backward);
    the gated outputs are averaged. The backward direction scans from the last token to the first, so that no tokens are
    reversed in memory. Source: Zhu et al., "Vision Mamba" (arXiv 2401.09417), algorithm 1.

    Args:
        d_model: Width of the tokens.
        d_state: States a channel.
        d_conv: Taps of the causal convolutions.
        expand: Width of a direction in units of ``d_model``.
        eigenvalues: "real", as published, or "complex": ``d_state`` / 2 conjugate pairs −exp(A_log) ± i A_imag in each
            direction, which have as many parameters, from S4D-Lin's start.
        device: Where the parameters are made.
        dtype: Their dtype; the decay rates and skips are at least float32 and stay so when the module is cast.

    Raises:
        ParameterError: ``eigenvalues`` does not fit.
    """

    float32_parameters = ("A_log", "A_imag", "A_b_log", "A_b_imag", "D", "D_b")

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        eigenvalues: str = "real",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False, **dd)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, **dd)
        self.conv1d_b = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, **dd)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **dd)
        self.x_proj_b = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **dd)
        self.dt_proj = StepProjection(self.dt_rank, self.d_inner, **dd)
        self.dt_proj_b = StepProjection(self.dt_rank, self.d_inner, **dd)
        state_dd: dict[str, Any] = {"device": device, "dtype": float32_unless_wider(dtype)}
        poles = num_poles(eigenvalues, d_state)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, poles, **state_dd))
        self.A_b_log = nn.Parameter(torch.empty(self.d_inner, poles, **state_dd))
        self.A_imag = frequencies(self.A_log, eigenvalues)
        self.A_b_imag = frequencies(self.A_b_log, eigenvalues)
        self.D = nn.Parameter(torch.empty(self.d_inner, **state_dd))
        self.D_b = nn.Parameter(torch.empty(self.d_inner, **state_dd))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False, **dd)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialises both scans by Mamba's textbook rules; the projections initialise themselves."""
        initialize_eigenvalues(self.A_log, self.A_imag)
        initialize_eigenvalues(self.A_b_log, self.A_b_imag)
        for D, dt_proj in ((self.D, self.dt_proj), (self.D_b, self.dt_proj_b)):
            D.fill_(1.0)
            nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            bias = dt_proj.bias
            bias.copy_(initial_step_bias(bias.shape, bias.dtype, bias.device))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens (batch, length, d_model)."""
        tokens, tokens_b, z = self.scan_inputs(x)
        return self.scan(tokens, tokens_b, z)

    def scan_inputs(self, x: Tensor) -> tuple[ScanTokens, ScanTokens, Tensor]:
        """Computes what both scans read of tokens (batch, length, d_model), forward first, and z, (batch, length, d_inner)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        forward = causal_conv_silu(x, self.conv1d.weight, self.conv1d.bias)
        backward = causal_conv_silu(x, self.conv1d_b.weight, self.conv1d_b.bias, reverse=True)
        sizes = [self.dt_rank, self.d_state, self.d_state]
        dt, B, C = self.x_proj(forward).split(sizes, dim=-1)
        dt_b, B_b, C_b = self.x_proj_b(backward).split(sizes, dim=-1)
        return (
            ScanTokens(forward, self.dt_proj(dt), B.unsqueeze(2), C.unsqueeze(2)),
            ScanTokens(backward, self.dt_proj_b(dt_b), B_b.unsqueeze(2), C_b.unsqueeze(2)),
            z,
        )

    def scan(self, tokens: ScanTokens, tokens_b: ScanTokens, z: Tensor) -> Tensor:
        """Mixes tokens by what ``scan_inputs`` computed of them."""
        y = scan(tokens, self.A_log, self.A_imag, self.D, self.dt_proj.bias)
        y_b = scan(tokens_b, self.A_b_log, self.A_b_imag, self.D_b, self.dt_proj_b.bias, True)
        return self.join(y, y_b, z)

    def join(self, y: Tensor, y_b: Tensor, z: Tensor) -> Tensor:
        """Gates and averages the outputs of both scans, (batch, length, d_inner) each, and projects them."""
        # gating does not depend on the direction, so both share one gate
        return self.out_proj((y + y_b) * F.silu(z) * 0.5)
