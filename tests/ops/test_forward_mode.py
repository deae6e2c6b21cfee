"""Forward mode by duals: every rule gives what torch.func composes, and what cannot be followed is refused."""

import pytest
import torch
import torch.nn.functional as F
from support.bounds import assert_accurate
from support.goldens import relative_error
from support.scans import scan_inputs
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from timm_mvhybrid import ops
from timm_mvhybrid.ops.einfft import cpu as einfft_cpu
from timm_mvhybrid.ops.einfft import einfft, einfft_portable
from timm_mvhybrid.ops.forward_mode import Dual, ForwardModeError, call, derivatives
from timm_mvhybrid.ops.forward_mode import dual as dual_module
from timm_mvhybrid.ops.selective_scan import selective_scan
from timm_mvhybrid.ops.selective_scan.portable import selective_scan_portable
from timm_mvhybrid.ops.transforms import wants_portable_form

DIRECTIONS = 3


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def composed(function, primals, tangents):
    """How the function's outputs move, by torch.func."""
    return vmap(lambda *moves: jvp(function, tuple(primals), moves)[1])(*tangents)


@pytest.fixture(autouse=True)
def attention_has_derivatives():
    """Chooses plain attention, as the fused kernels have no derivative in forward mode."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def only_rules(monkeypatch):
    """Fails a test that leaves a function to torch.func."""

    def refuse(function, *_):
        pytest.fail(f"{function} has no rule for this")

    monkeypatch.setattr(dual_module, "_composed", refuse)


def attention(x):
    q, k, v = x.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v)


def in_place_on_a_view(x):
    y = 2.0 * x
    F.silu(y.transpose(1, 2), inplace=True)
    return y


def einfft_weights(width, seed=5):
    shapes = ((2, 4, width, width), (2, 4, width)) * 2
    return [draw(*shape, seed=seed + number) for number, shape in enumerate(shapes)]


# drawn here, for nothing may be drawn inside of a transform
WEIGHT, BIAS, KERNELS, GAIN, SHIFT = draw(5, 24), draw(5), draw(6, 1, 2, 3), draw(24), draw(24, seed=1)
TOKENS, EINFFT = draw(2, 7, 24, seed=1), einfft_weights(6)
WITH_RULE = {
    "linear": lambda x: F.linear(x, WEIGHT, BIAS),
    "linear without bias": lambda x: F.linear(x, WEIGHT),
    "conv2d": lambda x: F.conv2d(x, KERNELS, KERNELS[:, 0, 0, 0], 2, [1, 2], groups=2),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "layer_norm": lambda x: F.layer_norm(x, [24], GAIN, SHIFT, 1e-3),
    "layer_norm without weights": lambda x: F.layer_norm(x, [24]),
}
WITHOUT_RULE = {
    "attention": attention,
    "scaled attention": lambda x: F.scaled_dot_product_attention(x, x, x[..., :5], scale=0.3),
    "causal attention": lambda x: F.scaled_dot_product_attention(x, x.flip(1), x, is_causal=True),
    "attention to what does not move": lambda x: F.scaled_dot_product_attention(x, TOKENS, x),
    "layer_norm over two axes": lambda x: F.layer_norm(x, [7, 24], TOKENS[0]),
    "moving weight": lambda x: F.linear(x[0], x[1]),
    "softmax": lambda x: x.softmax(1),
    "parts": lambda x: torch.cat([part.exp() for part in x.split([5, 19], dim=-1)], dim=-1),
    "largest": lambda x: x.max(dim=1).values,
    "chosen by comparing": lambda x: torch.where(x > 0, x.square(), -x),
    "sizes": lambda x: x.new_ones(x.shape) * x.mT.reshape(x.shape[0], x.shape[1], -1) if x.ndim == 3 else x,
    "in place on a view": in_place_on_a_view,
    "einfft": lambda x: einfft(x, *EINFFT, 0.3),
}


def input_of(name):
    shape = (2, 2, 7, 24) if name == "conv2d" else (2, 7, 24)
    return draw(*shape, seed=3), draw(DIRECTIONS, *shape, seed=4)


def assert_moves_like_jvp(function, x, directions):
    actual, expected = derivatives(function, x, directions), composed(function, [x], [directions])
    assert actual.shape == expected.shape
    assert expected.abs().max() > 1e-3
    assert relative_error(actual, expected) < 1e-10


@pytest.mark.usefixtures("only_rules")
@pytest.mark.parametrize("name", WITH_RULE)
def test_a_rule_moves_as_torch_func_does(name):
    assert_moves_like_jvp(WITH_RULE[name], *input_of(name))


@pytest.mark.parametrize("name", WITHOUT_RULE)
def test_what_has_no_rule_or_mixes_several_moves_as_torch_func_does(name):
    assert_moves_like_jvp(WITHOUT_RULE[name], *input_of(name))


def test_attention_has_a_rule(monkeypatch):
    taken = []
    plain = dual_module._composed
    monkeypatch.setattr(dual_module, "_composed", lambda f, *a: taken.append(f) or plain(f, *a))
    x, directions = input_of("attention")
    derivatives(attention, x, directions)
    assert taken
    assert F.scaled_dot_product_attention not in taken


def test_rules_round_as_often_as_their_formulas_say():
    def both(x):
        return {
            "norm": derivatives(lambda at: F.layer_norm(at, [24]), x["x"], x["directions"]),
            "attention": derivatives(attention, x["x"], x["directions"]),
        }

    def exact(x):
        return {
            "norm": composed(lambda at: F.layer_norm(at, [24]), [x["x"]], [x["directions"]]),
            "attention": composed(attention, [x["x"]], [x["directions"]]),
        }

    x, directions = (v.float() for v in input_of("attention"))
    inputs = {"x": x, "directions": directions}
    # sums over channels, keys and channels again, and a few products
    assert_accurate(both(inputs), exact, inputs, roundings=3 * 24 + 16)


def test_what_does_not_move_is_plain_or_moves_by_zero():
    x, directions = input_of("silu")
    dual = Dual(x, directions)
    assert dual.shape == x.shape
    assert dual.stride() == x.stride()
    assert dual.dtype == torch.float64
    assert type(dual > 0) is torch.Tensor
    assert type(dual.argmax()) is torch.Tensor
    assert torch.equal(derivatives(lambda at: torch.ones(4), x, directions), torch.zeros(DIRECTIONS, 4))
    assert derivatives(torch.zeros_like, x, directions).abs().max() == 0


def test_a_change_in_place_is_refused_and_the_input_is_kept():
    x, directions = input_of("silu")
    before = x.clone()
    with pytest.raises(ForwardModeError, match="add_ changes its argument in place"):
        derivatives(lambda at: at.add_(1.0), x, directions)
    assert torch.equal(x, before)
    assert not wants_portable_form()
    with torch.inference_mode(), pytest.raises(ForwardModeError, match="in place"):
        derivatives(lambda at: at.exp_(), x, directions)


def store_in_a_buffer(at):
    buffer = torch.zeros(at.shape, dtype=at.dtype)
    buffer[:, 1:] = at[:, 1:]
    return buffer


def test_moves_are_not_lost_in_what_does_not_move():
    with pytest.raises(ForwardModeError, match="__setitem__ changes its argument in place"):
        derivatives(store_in_a_buffer, *input_of("silu"))
    with pytest.raises(ForwardModeError, match="same for all directions"):
        derivatives(lambda at: F.silu(torch.zeros_like(at), inplace=True), *input_of("silu"))


def test_a_first_layer_in_place_keeps_input_and_directions():
    x, directions = input_of("silu")
    kept, kept_directions = x.clone(), directions.clone()
    moved = derivatives(lambda at: F.silu(at, inplace=True), x, directions)
    assert torch.equal(x, kept)
    assert torch.equal(directions, kept_directions)
    assert relative_error(moved, derivatives(F.silu, x, directions)) < 1e-10


def test_what_gets_past_the_rules_is_refused():
    x, directions = input_of("silu")
    with torch._C.DisableTorchFunctionSubclass(), pytest.raises(ForwardModeError, match="cannot be seen"):
        torch.exp(Dual(x, directions))


def test_calls_take_the_portable_form_in_a_pass_alone():
    seen = []
    derivatives(lambda at: seen.append(wants_portable_form()) or at, *input_of("silu"))
    assert seen == [True]
    assert not wants_portable_form()
    assert call(torch.add, torch.ones(()), 1.0) == 2.0


@pytest.mark.parametrize("length", [1, 2, 16, 17, 257])
def test_einfft_moves_as_torch_func_does_in_parts_too(length, monkeypatch):
    x, directions = draw(2, length, 8, seed=3), draw(DIRECTIONS, 2, length, 8, seed=4)
    weights = einfft_weights(2)

    def function(at):
        return einfft(at, *weights, 0.3)

    expected = composed(lambda at: einfft_portable(at, *weights, 0.3), [x], [directions])
    assert relative_error(derivatives(function, x, directions), expected) < 1e-10
    monkeypatch.setattr(einfft_cpu, "PART_ELEMENTS", 2 * 2 * length * 8)
    assert relative_error(derivatives(function, x, directions), expected) < 1e-10


SCAN_CASES = [
    # options, groups, softplus, reverse, arguments that move
    ("Dzb", None, True, False, ("u", "delta", "B", "C", "z")),
    ("Db", None, True, True, ("u", "delta", "B", "C")),
    ("", 2, False, True, ("u", "delta", "B", "C")),
    ("Db", "constant", True, False, ("u", "delta")),
    ("z", 3, True, False, ("B", "z")),
    ("", None, True, True, ("C",)),
    ("Dz", None, True, False, ("delta",)),
]


def scan_case(length, options, groups, softplus, names, *, d_inner=6, dtype=torch.float64):
    inputs = scan_inputs(length, options=options, groups=groups, d_inner=d_inner, dtype=dtype)
    inputs = {key: None if v is None else v.detach() for key, v in inputs.items()}
    if not softplus:  # negative step sizes would let the state grow without bound
        inputs["delta"] = inputs["delta"].abs()
    tangents = {
        key: draw(DIRECTIONS, *inputs[key].shape, seed=7 + number, dtype=dtype)
        for number, key in enumerate(names)
    }
    return inputs, tangents


def scan_moves(inputs, tangents, **options):
    """y and the last state, and how they move, by duals."""
    given = {key: Dual(v, tangents[key]) if key in tangents else v for key, v in inputs.items()}
    with dual_module.in_forward_mode():
        outputs = selective_scan(**given, **options, return_last_state=True)
    return [part for out in outputs for part in (out.primal, out.tangents)]


def scan_composed(inputs, tangents, **options):
    """The same by torch.func."""

    def scan(*values):
        given = {**inputs, **dict(zip(tangents, values, strict=True))}
        return selective_scan(**given, **options, return_last_state=True)

    moving = [inputs[key] for key in tangents]
    values, moves = scan(*moving), composed(scan, moving, tangents.values())
    return [part for pair in zip(values, moves, strict=True) for part in pair]


@pytest.fixture(params=["numba", "cpu"])
def implementation(request):
    """Runs a test by numba's kernel, and as where numba is missing."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
    with ops.use_implementation(request.param):
        yield request.param


@pytest.mark.parametrize("length", [1, 2, 17, 257])
@pytest.mark.parametrize(("options", "groups", "softplus", "reverse", "names"), SCAN_CASES)
def test_scan_moves_as_torch_func_does(
    implementation, length, options, groups, softplus, reverse, names, request
):
    if implementation == "numba":
        request.getfixturevalue("only_scan_rule")
    inputs, tangents = scan_case(length, options, groups, softplus, names)
    arguments = dict(delta_softplus=softplus, reverse=reverse)
    actual = scan_moves(inputs, tangents, **arguments)
    for found, expected in zip(actual, scan_composed(inputs, tangents, **arguments), strict=True):
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 1e-10


@pytest.fixture
def only_scan_rule(monkeypatch):
    """Fails a test that leaves the scan itself to torch.func."""
    plain = dual_module._composed

    def watch(function, *rest):
        if function is selective_scan_portable:
            pytest.fail("the scan's rule was not taken")
        return plain(function, *rest)

    monkeypatch.setattr(dual_module, "_composed", watch)


@pytest.mark.parametrize("d_inner", [1, 16, 21, 48])
def test_scan_moves_any_number_of_channels(implementation, d_inner):
    inputs, tangents = scan_case(19, "Db", None, True, ("u", "delta", "B", "C"), d_inner=d_inner)
    actual = scan_moves(inputs, tangents, delta_softplus=True)
    expected = scan_composed(inputs, tangents, delta_softplus=True)
    for found, value in zip(actual, expected, strict=True):
        assert relative_error(found, value) < 1e-10


@pytest.mark.parametrize("length", [1, 2, 17, 257])
def test_scan_moves_with_the_error_of_its_roundings(implementation, length):
    inputs, tangents = scan_case(
        length, "Db", None, True, ("u", "delta", "B", "C"), d_inner=32, dtype=torch.float32
    )
    values = {**inputs, **{f"moved {key}": v for key, v in tangents.items()}}

    def split(run, x):
        moves = {key.removeprefix("moved "): v for key, v in x.items() if key.startswith("moved ")}
        return run({key: x[key] for key in inputs}, moves, delta_softplus=True)

    assert_accurate(
        split(scan_moves, values), lambda x: split(scan_composed, x), values, roundings=length + 16 + 16
    )


def test_scan_with_moving_weights_is_left_to_torch_func(implementation):
    inputs, tangents = scan_case(17, "Db", None, True, ("u", "A", "D"))
    actual = scan_moves(inputs, tangents, delta_softplus=True)
    for found, expected in zip(actual, scan_composed(inputs, tangents, delta_softplus=True), strict=True):
        assert relative_error(found, expected) < 1e-10
