"""The Vision Mamba mixer: two causal scans, one over the tokens and one over the reversed tokens."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.causal_conv import causal_conv_silu
from ..ops.precision import at_least_float32
from ..ops.selective_scan import selective_scan_tokens
from .float32 import KeepsFloat32, float32_unless_wider
from .step_size import initial_step_bias


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
        device: Where the parameters are made.
        dtype: Their dtype; the decay rates and skips are at least float32 and stay so when the module is cast.
    """

    float32_parameters = ("A_log", "A_b_log", "D", "D_b")

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
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
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, **dd)
        self.dt_proj_b = nn.Linear(self.dt_rank, self.d_inner, **dd)
        state_dd: dict[str, Any] = {"device": device, "dtype": float32_unless_wider(dtype)}
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state, **state_dd))
        self.A_b_log = nn.Parameter(torch.empty(self.d_inner, d_state, **state_dd))
        self.D = nn.Parameter(torch.empty(self.d_inner, **state_dd))
        self.D_b = nn.Parameter(torch.empty(self.d_inner, **state_dd))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False, **dd)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialises both scans by Mamba's textbook rules; the projections initialise themselves."""
        rates = torch.arange(1, self.d_state + 1, device=self.A_log.device).log()
        for A_log, D, dt_proj in (
            (self.A_log, self.D, self.dt_proj),
            (self.A_b_log, self.D_b, self.dt_proj_b),
        ):
            A_log.copy_(rates.expand_as(A_log))
            D.fill_(1.0)
            nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            bias = dt_proj.bias
            bias.copy_(initial_step_bias(bias.shape, bias.dtype, bias.device))

    def forward(self, x: Tensor) -> Tensor:
        """Mixes tokens (batch, length, d_model)."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        forward = causal_conv_silu(x, self.conv1d.weight, self.conv1d.bias)
        backward = causal_conv_silu(x, self.conv1d_b.weight, self.conv1d_b.bias, reverse=True)
        dt_proj, dt_proj_b = self.dt_proj, self.dt_proj_b
        y = self._scan(forward, self.x_proj(forward), dt_proj.weight, dt_proj.bias, self.A_log, self.D, False)
        y_b = self._scan(
            backward, self.x_proj_b(backward), dt_proj_b.weight, dt_proj_b.bias, self.A_b_log, self.D_b, True
        )
        # gating does not depend on the direction, so both share one gate
        return self.out_proj((y + y_b) * F.silu(z) * 0.5)

    def _scan(
        self,
        x: Tensor,
        selection: Tensor,
        step_weight: Tensor,
        step_bias: Tensor,
        A_log: Tensor,
        D: Tensor,
        reverse: bool,
    ) -> Tensor:
        """Scans tokens x in one direction; ``selection`` holds dt, B and C."""
        dt, B, C = selection.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return selective_scan_tokens(
            x,
            # the bias of dt_proj acts inside the scan, once
            F.linear(dt, step_weight),
            -torch.exp(at_least_float32(A_log)),
            B.unsqueeze(2),
            C.unsqueeze(2),
            D,
            None,
            step_bias,
            reverse,
        )
