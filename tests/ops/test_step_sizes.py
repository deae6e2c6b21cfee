"""Step sizes against torch's softplus in float64."""

import pytest
import torch
import torch.nn.functional as F
from support.bounds import assert_accurate

from timm_mvhybrid.ops.step_sizes import softplus_, write_step_sizes
from timm_mvhybrid.ops.workspace import KEPT_BYTES, scratch


def test_softplus_is_as_accurate_as_torchs_from_tiny_to_large():
    x = torch.cat([torch.linspace(-80, 40, 200_001), torch.tensor([0.0, -0.0, 20.0])])
    expected = F.softplus(x.double())
    actual = x.clone()
    softplus_(actual)
    relative = ((actual.double() - expected) / expected).abs()
    assert relative.max() < 2.5e-7
    assert relative.square().mean().sqrt() < 4e-8


def test_softplus_of_what_is_not_finite_is_torchs():
    x = torch.tensor([float("inf"), -float("inf"), float("nan")])
    actual = x.clone()
    softplus_(actual)
    torch.testing.assert_close(actual, F.softplus(x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("softplus", [False, True])
def test_step_sizes_are_computed_in_float32_whatever_the_dtype_of_the_projection(dtype, with_bias, softplus):
    torch.manual_seed(0)
    raw = (9 * torch.randn(3, 5, 7)).to(dtype)
    bias = torch.randn(7).to(dtype) if with_bias else torch.zeros(7)
    out = torch.full(raw.shape, float("nan"))
    write_step_sizes(out, raw, bias if with_bias else None, softplus)
    activation = F.softplus if softplus else torch.clone
    # a sum, an exponential, a logarithm
    assert_accurate([out], lambda x: [activation(x[0] + x[1])], [raw, bias], roundings=3)


def test_step_sizes_in_float64_are_exactly_torchs():
    raw = torch.linspace(-40, 40, 81, dtype=torch.float64)
    out = torch.full_like(raw, float("nan"))
    write_step_sizes(out, raw, None, True)
    torch.testing.assert_close(out, F.softplus(raw), rtol=0, atol=0)


def test_scratch_pieces_do_not_overlap_and_are_used_again():
    like = torch.zeros(1, dtype=torch.float64)
    first, second = scratch(like, (3, 5), (7,))
    first.fill_(1.0), second.fill_(2.0)
    assert first.shape == (3, 5)
    assert second.shape == (7,)
    assert first.dtype == torch.float64
    assert (first == 1).all()
    assert (second == 2).all()
    again, _ = scratch(like, (3, 5), (7,))
    assert again.data_ptr() == first.data_ptr()


def test_scratch_beyond_the_limit_is_not_kept():
    like = torch.zeros(1)
    (small,) = scratch(like, (4,))
    (large,) = scratch(like, (KEPT_BYTES // 4 + 1,))
    assert large.numel() == KEPT_BYTES // 4 + 1
    assert scratch(like, (4,))[0].data_ptr() == small.data_ptr() != large.data_ptr()
