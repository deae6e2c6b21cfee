"""One codec of dataclasses: whole results, and settings of which any part may be given."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest

from timm_mvhybrid.runtime.codec import decode, dump, encode, update
from timm_mvhybrid.runtime.errors import EvaluationError, PretrainError


@dataclass(frozen=True, kw_only=True)
class Part:
    rate: float = 1.0
    kind: Literal["a", "b", 1] = "a"

    def __post_init__(self):
        if self.rate < 0:
            raise PretrainError(f"part.rate is {self.rate}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Whole:
    shared: ClassVar[int] = 3

    name: str
    number: int = 1
    flag: bool = False
    path: Path | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    parts: tuple[Part, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    options: Annotated[dict[str, Any], "anything"] = field(default_factory=dict)
    part: Part = Part()


WHOLE = Whole(
    name="ü",
    number=7,
    flag=True,
    path=Path("a/b"),
    pair=(0.5, 2.0),
    parts=(Part(kind=1), Part(rate=2.0)),
    scores={"r": 0.25},
    options={"depth": 2},
)


def test_a_whole_comes_back():
    assert decode(Whole, json.loads(dump(WHOLE)), "file") == WHOLE
    assert update(Whole(name="other"), encode(WHOLE), "file") == WHOLE


def test_numbers_that_do_not_exist_are_null_in_results_and_refused_in_settings():
    whole = Whole(name="x", scores={"r": math.nan, "s": math.inf})
    found = decode(Whole, json.loads(dump(whole)), "file")
    assert all(math.isnan(value) for value in found.scores.values())
    with pytest.raises(PretrainError, match=r"^file: part\.rate is None; it must be of type float$"):
        update(WHOLE, {"part": {"rate": None}}, "file")


def test_settings_that_are_not_named_stay():
    assert update(WHOLE, {"part": {"rate": "1e-6"}}) == update(WHOLE, {"part": {"rate": 1e-6}})
    assert update(WHOLE, {"path": None, "number": 8}).path is None
    assert update(WHOLE, {}) == WHOLE


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nmae": "x"}, "there is no setting nmae; did you mean name"),
        ({"part": {"rte": 1}}, r"there is no setting part\.rte; did you mean part\.rate"),
        ({"q": 1}, "there is no setting q; there are name, number"),
        ({"shared": 4}, "there is no setting shared"),
        ({"number": True}, "number is True; it must be of type int"),
        ({"number": 1.0}, r"number is 1\.0; it must be of type int"),
        ({"flag": 1}, "flag is 1; it must be of type bool"),
        ({"name": None}, "name is None; it must be of type str"),
        ({"pair": [1]}, r"pair is \[1\]; it must be of type tuple"),
        ({"pair": "ab"}, "pair is 'ab'; it must be of type tuple"),
        ({"pair": [1, "x"]}, r"pair\[1\] is 'x'; it must be of type float"),
        ({"part": 3}, "part is 3; it must be an object"),
        ({"part": {"kind": "c"}}, r"part\.kind is 'c'; it must be one of a, b, 1"),
        ({"part": {"kind": True}}, r"part\.kind is True; it must be one of"),
        ({"part": {"rate": -1.0}}, r"part\.rate is -1\.0; it must be at least 0"),
        ({"scores": {"r": "high"}}, r"scores\.r is 'high'; it must be of type float"),
    ],
)
def test_a_mistake_in_settings_is_named(values, message):
    with pytest.raises(PretrainError, match=f"^file.yaml: {message}"):
        update(WHOLE, values, "file.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("number"), "missing or unknown: number; was it written by another"),
        (lambda values: values["parts"][1].update(new=1), r"missing or unknown in parts\[1\]: new;"),
        (lambda values: values.update(number="7"), "number is '7'; it must be of type int"),
        (lambda values: values.update(pair=["0.5", 2]), r"pair\[0\] is '0\.5'; it must be of type float"),
        (lambda values: values.update(scores=[1]), r"scores is \[1\]; it must be an object"),
    ],
)
def test_a_mistake_in_a_result_is_named(change, message):
    values = json.loads(dump(WHOLE))
    change(values)
    with pytest.raises(EvaluationError, match=f"^results.json: {message}"):
        decode(Whole, values, "results.json")
    with pytest.raises(EvaluationError, match="it is 3; it must be an object"):
        decode(Whole, 3, "results.json")


def test_paths_are_written_as_asked():
    assert encode(WHOLE)["path"] == str(Path("a/b"))
    assert encode({"a": (Path("x/y"),)}, path=lambda path: path.name) == {"a": ["y"]}
