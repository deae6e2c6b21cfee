"""Arguments that tasks share: the models, and values that are spelled in one word on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from ..embed.backbone import Backbone, load_backbone
from ..runtime.errors import EvaluationError


def word(metavar: str, read: Callable[[str], Any], write: Callable[[Any], str] = str) -> Any:
    """Tells the command line how a value is spelled in one word."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [write(value)],
    )


def comma_separated(metavar: str) -> Any:
    """Tells the command line that texts are given in one word, separated by commas."""
    return word(metavar, lambda text: tuple(part.strip() for part in text.split(",")), ",".join)


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """Which models embed.

    Attributes:
        model: Timm models, separated by commas; the first is the one that others are compared with.
        pretrained: Take the weights that timm downloads, for models without a checkpoint.
        checkpoint: One file of weights for each model, separated by commas; leave one empty to take none.
    """

    model: Annotated[tuple[str, ...], comma_separated("NAME[,NAME...]")]
    pretrained: bool = False
    checkpoint: Annotated[tuple[str, ...], comma_separated("FILE[,FILE...]")] = ()

    def load(self, seed: int = 0, on_warning: Callable[[str], None] | None = None) -> list[Backbone]:
        """Builds the models.

        Args:
            seed: Seed of random weights.
            on_warning: Told of models whose weights are random.

        Returns:
            One for each name.

        Raises:
            EvaluationError: There are not as many files as models.
        """
        names = [name for name in self.model if name]
        files = self.checkpoint if any(self.checkpoint) else ("",) * len(names)
        if len(files) != len(names):
            raise EvaluationError(
                f"--checkpoint names {len(files)} files for {len(names)} models; leave one empty for a model without"
            )
        models = [
            load_backbone(
                name,
                pretrained=self.pretrained and not file,
                checkpoint=Path(file) if file else None,
                seed=seed,
            )
            for name, file in zip(names, files, strict=True)
        ]
        random = [backbone.name for backbone in models if backbone.weights == "random"]
        if random and on_warning is not None:
            on_warning(
                f"the weights of {', '.join(random)} are random; give --checkpoint FILE or --pretrained"
            )
        return models
