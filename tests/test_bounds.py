"""What tests/support says of rounding: bounds that any order of additions keeps, and which tests need other CPUs."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import seeds
from support.bounds import assert_accurate, away_from_kinks, condition, gamma, widened
from support.numeric import compares_numbers
from support.scans import scan_inputs

from timm_mvhybrid.ops import selective_scan, selective_scan_reference


def scanned(inputs, scan=selective_scan_reference):
    """y and all gradients."""
    y = scan(**inputs, delta_softplus=True)
    present = {name: x for name, x in inputs.items() if x is not None}
    grads = torch.autograd.grad(y.square().sum(), list(present.values()))
    return {"y": y.detach(), **dict(zip(present, grads, strict=True))}


def tensorfloat32(x):
    """Rounds to the ten bits of mantissa that matrix units of GPUs keep of float32."""
    return ((x.detach().view(torch.int32) + 2**12) & -(2**13)).view(torch.float32).requires_grad_()


def changed(name, change):
    def mistake(inputs):
        return {**inputs, name: change(inputs[name].detach()).requires_grad_()}

    return mistake


MISTAKES = {
    "TF32": lambda inputs: {name: tensorfloat32(x) for name, x in inputs.items()},
    "TF32 of B alone": changed("B", tensorfloat32),
    "decay off by 1e-4": changed("A", lambda A: A * (1 + 1e-4)),
    "one decay of its neighbour": changed("A", lambda A: torch.cat([A[:, :1], A[:, :-1]], dim=1)),
    "one channel without D": changed("D", lambda D: torch.cat([D[:-1], D[-1:] * 0])),
    "one token late": changed("B", lambda B: B.roll(1, -1)),
    "two tokens exchanged": changed("u", lambda u: torch.cat([u[..., 1:2], u[..., :1], u[..., 2:]], -1)),
    "NaN": changed("z", lambda z: z.index_fill(0, torch.tensor([0]), torch.nan)),
}


@pytest.mark.parametrize("length", [2, 63])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_no_rounding(length, mistake):
    inputs = scan_inputs(length, d_state=16, dtype=torch.float32)
    wrong = scanned(MISTAKES[mistake](inputs), selective_scan)
    with pytest.raises(AssertionError, match=r"an error of .* roundings, where"):
        assert_accurate(wrong, scanned, inputs, roundings=length + 16)


@pytest.mark.parametrize("order", ["in sequence", "in pairs", "by float32 blocks"])
@pytest.mark.parametrize("num", [1, 7, 1000])
def test_a_sum_may_be_taken_in_any_order(order, num):
    x = torch.randn(50, num)
    total = {
        "in sequence": lambda: torch.stack([row.cumsum(0)[-1] for row in x]),
        "in pairs": lambda: x.flip(1).sum(1),
        "by float32 blocks": lambda: sum(part.sum(1) for part in x.split(16, 1)),
    }[order]()
    assert_accurate([total], lambda inputs: [inputs[0].sum(1)], [x], roundings=num)


def test_cancellation_is_in_the_condition_and_not_in_the_error():
    # 1 + 1e-4 - 1 loses four digits in float32, by whatever implementation
    x = torch.tensor([1.0, 1e-4, -1.0])

    def total(inputs):
        return [inputs[0].sum()]

    (amplified,) = condition(total, widened([x]), total(widened([x]))).values()
    assert 0.5 < amplified < 2.5
    assert_accurate([x.sum()], total, [x], roundings=3)


def test_gamma_is_the_worst_case_of_a_sum():
    # 1, and then so often half a unit that is lost: 1 + u rounds to 1, to even
    num = 4096
    x = np.full(num, 2.0**-24, np.float32)
    x[0] = 1
    lost = float(x.astype(np.float64).sum() - np.cumsum(x)[-1])
    assert 0.5 * gamma(num, torch.float32) < lost < gamma(num, torch.float32)


def test_inputs_are_drawn_away_from_kinks():
    def draw(seed):
        return [torch.tensor([1 - 1e-7 if seed < 2 else 0.5], dtype=torch.float64)]

    def slope_of_relu_at_1(inputs):
        return [(inputs[0] > 1).double()]

    assert away_from_kinks(draw, slope_of_relu_at_1)[0].tolist() == [0.5]


def test_seeds_of_tests_move_and_those_of_the_product_stay():
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import random
import numpy as np, torch
from support import seeds
from support.scans import scan_inputs
print(scan_inputs(1)["A"][0, 0].item())  # a file of tests/ states the seed
print(torch.Generator().manual_seed(3).initial_seed(), np.random.default_rng(3).integers(1 << 40))
"""

    def draw(offset):
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={"PATH": "", seeds.VARIABLE: offset},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()

    (as_stated, others), (moved, same) = draw("0"), draw("1000")
    assert as_stated != moved
    assert others == same == f"3 {np.random.Generator(np.random.PCG64(3)).integers(1 << 40)}"


@pytest.mark.fixed_seed
def test_a_test_keeps_its_seeds_where_it_asks_for_it():
    assert torch.Generator().manual_seed(5).initial_seed() == 5
    torch.manual_seed(5)
    assert torch.initial_seed() == 5
    random.seed(5)
    expected = random.Random(5).random()
    assert random.random() == expected


COMPARING = {
    "itself": "def test(): torch.testing.assert_close(a, b)",
    "by a fixture": "@pytest.fixture\ndef checked(): assert np.array_equal(a, b)\n\ndef test(checked): pass",
    "by a function": "def near(a): assert 0.1 < a\n\ndef check(a): near(a)\n\ndef test(): check(1)",
    "by a constant": "LIMIT = dict(rtol=1e-3)\n\ndef test(): compare(a, b, **LIMIT)",
    "by an import": "from support.bounds import assert_accurate as right\n\ndef test(): right(a, b, c)",
    "by a module": "from support import bounds\n\ndef test(): bounds.assert_accurate(a, b, c)",
    "in a class": "class Case:\n    def test(self): assert a < 1e-6",
}
NOT_COMPARING = {
    "names": "def test(): assert names == ['a', 'b']",
    "counts": "def test(): assert len(names) > 3",
    "another test": "def test(): assert names\n\ndef test_other(): torch.testing.assert_close(a, b)",
    "the package": "from timm_mvhybrid.probes import approx\n\ndef test(): check()",
}


@pytest.mark.parametrize("how", [*COMPARING, *NOT_COMPARING])
def test_tests_that_compare_numbers_are_found(how, tmp_path):
    path = tmp_path / "test_file.py"
    path.write_text({**COMPARING, **NOT_COMPARING}[how])
    assert compares_numbers(path, "Case" if "class" in how else "test") == (how in COMPARING)
