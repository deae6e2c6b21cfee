"""What every operator has from its registration: named, checked and alike."""

import pytest
import torch
from torch import Tensor

from timm_mvhybrid.ops.autograd import is_needed, register


def product(x: Tensor, weight: Tensor | None, power: float, save: bool) -> tuple[Tensor, Tensor]:
    """x^power times weight; the power alone is kept for backward."""
    assert not torch.is_autocast_enabled(x.device.type)
    raised = x**power
    return raised.clone() if weight is None else raised * weight, raised if save else x.new_empty(0)


def product_backward(
    grad: Tensor, raised: Tensor, x: Tensor, weight: Tensor | None, power: float
) -> tuple[Tensor, Tensor]:
    factor = grad if weight is None else grad * weight
    grad_weight = x.new_empty(0) if weight is None else grad * raised
    # a transposed copy: the registration makes it contiguous
    return (factor * power * x ** (power - 1)).mT.contiguous().mT, grad_weight


def describe(*, x: Tensor, save: bool, **_: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape if save else [0])


register("test_product", product, product_backward, describe, save="save")
operator = torch.ops.timm_mvhybrid.test_product


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("with_weight", [True, False])
def test_registration_passes_torchs_own_checks(with_weight):
    x = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(3, 4, dtype=torch.float64, requires_grad=True) if with_weight else None
    torch.library.opcheck(operator.default, (x, weight, 3.0, True))
    inputs = [v for v in (x, weight) if v is not None]
    assert torch.autograd.gradcheck(
        lambda *v: operator(v[0], v[1] if with_weight else None, 3.0, True)[0], inputs
    )


def test_gradients_are_contiguous_and_autocast_stays_outside():
    x = torch.rand(3, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = operator(x, None, 2.0, True)[0]
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == torch.float32
    assert grad.is_contiguous()
    assert torch.equal(grad, 2 * x.detach())


asked = []


def selective_backward(
    grad: Tensor, raised: Tensor, x: Tensor, weight: Tensor | None, power: float, needed: int
) -> tuple[Tensor, Tensor]:
    asked.append([is_needed(needed, index) for index in range(2)])
    # what is not asked for is of the wrong shape, and may be
    grad_x, grad_weight = product_backward(grad, raised, x, weight, power)
    return tuple(
        value if flag else value.new_empty(7)
        for value, flag in zip((grad_x, grad_weight), asked[-1], strict=True)
    )


register("test_selective", product, selective_backward, describe, save="save")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True)])
def test_backward_knows_which_gradients_are_asked_for(needs):
    selective = torch.ops.timm_mvhybrid.test_selective
    values = [torch.rand(3, 4).requires_grad_(flag) for flag in needs]
    asked.clear()
    selective(*values, 3.0, True)[0].sum().backward()
    assert asked == [list(needs)]
    expected = [x.detach().requires_grad_() for x in values]
    operator(*expected, 3.0, True)[0].sum().backward()
    for value, other, flag in zip(values, expected, needs, strict=True):
        assert torch.equal(value.grad, other.grad) if flag else value.grad is None
    x, weight = (v.detach() for v in values)
    bits = sum(flag << index for index, flag in enumerate(needs))
    torch.library.opcheck(
        torch.ops.timm_mvhybrid.test_selective_backward.default, (x, x**3, x, weight, 3.0, bits)
    )
    compiled = torch.compile(lambda *v: selective(*v, 3.0, True)[0].sum(), backend="aot_eager")
    again = [v.detach().requires_grad_(flag) for v, flag in zip(values, needs, strict=True)]
    compiled(*again).backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(again, values, strict=True) if a.requires_grad)


def test_nothing_saved_is_an_error_where_a_gradient_is_needed():
    with pytest.raises(RuntimeError, match="test_product was called with save=False"):
        operator(torch.rand(2, requires_grad=True), None, 2.0, False)
    assert operator(torch.rand(2), None, 2.0, False)[1].numel() == 0


@pytest.mark.parametrize(
    "backward",
    [
        lambda grad, raised, x, power: (),
        lambda grad, x, weight, power: (),
        lambda grad, raised, weight, x, power: (),
        lambda grad, raised, x, weight, save: (),
    ],
    ids=["a tensor is missing", "nothing saved is taken", "another order", "the flag"],
)
def test_signatures_that_do_not_fit(backward):
    with pytest.raises(TypeError, match="does not fit forward"):
        register("test_misfit", product, backward, describe, save="save")
