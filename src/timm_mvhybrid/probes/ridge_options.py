"""How a ridge regression's penalty and components are asked for, in Python and in one word on the command line."""

from __future__ import annotations

from typing import Annotated, Literal

from ..runtime.option_words import word

HEST_COMPONENTS = 256
"""Principal components of HEST's recipe."""

Components = int | Literal["auto"] | None
Alpha = float | Literal["nested"] | None


def _components(text: str) -> Components:
    return "auto" if text == "auto" else None if text == "none" else int(text)


def _alpha(text: str) -> Alpha:
    return "nested" if text == "nested" else None if text == "recipe" else float(text)


ComponentsOption = Annotated[
    Components, word("auto|none|N", _components, lambda value: "none" if value is None else str(value))
]
AlphaOption = Annotated[
    Alpha, word("recipe|nested|VALUE", _alpha, lambda value: "recipe" if value is None else str(value))
]
