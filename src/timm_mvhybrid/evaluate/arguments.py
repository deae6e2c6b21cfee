"""Arguments that tasks share: models and seed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from ..embed.backbone import Backbone, TokenKind, load_backbone, load_tokens
from ..embed.baselines import BASELINES, COLOUR, PREFIX
from ..runtime.errors import EvaluationError, check_seed
from ..runtime.option_words import comma_separated


@contextmanager
def errors_in(where: str) -> Iterator[None]:
    """Puts where it happened, such as the fold, before the message of an error.

    Raises:
        EvaluationError: The block raised one.
    """
    try:
        yield
    except EvaluationError as error:
        raise EvaluationError(f"{where}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """Which models embed.

    Attributes:
        model: Timm models, separated by commas; the first is the one that others are compared with.
        pretrained: Take the weights that timm downloads, for models without a checkpoint.
        checkpoint: One file of weights for each model, separated by commas; leave one empty to take none.
        features: Of models that MINT fine-tuned (local-dir:FOLDER, hf-hub:ORG/NAME, or the folder of the run as
            checkpoint): the class token, the ST token, or both side by side (class+st); several, separated by commas, of
            one model, or one for each. By default a model's own features.
        baselines: What is shown beside the models, because they must beat it: colour (22 statistics of a patch's colours),
            mean (no image at all), position (where a spot lies, which tells how far test spots have neighbours in the train
            part); several, separated by commas, or none. Tasks on labelled images show colour alone.
    """

    model: Annotated[tuple[str, ...], comma_separated("NAME[,NAME...]")]
    pretrained: bool = False
    checkpoint: Annotated[tuple[str, ...], comma_separated("FILE[,FILE...]")] = ()
    features: Annotated[tuple[str, ...], comma_separated("class|st|class+st[,...]")] = ()
    baselines: Annotated[tuple[str, ...], comma_separated("colour,mean,position|none")] = tuple(
        name.removeprefix(PREFIX) for name in BASELINES
    )

    def load(
        self,
        seed: int = 0,
        on_warning: Callable[[str], None] | None = None,
        shown: Collection[str] = (COLOUR,),
    ) -> list[Backbone]:
        """Builds the models, and behind them the baselines.

        Args:
            seed: Seed of random weights.
            on_warning: Called with a sentence that names the models whose weights are random.
            shown: Baselines that the task can show.

        Returns:
            One for each name, and one for each baseline that is wanted, can be shown, and is not among the names.

        Raises:
            ParameterError: The seed cannot be used.
            EvaluationError: There are not as many files as models, or the features or baselines are unknown.
        """
        check_seed(seed)
        baselines = self._baselines()
        names = [name for name in self.model if name]
        files = self.checkpoint if any(self.checkpoint) else ("",) * len(names)
        if len(files) != len(names):
            raise EvaluationError(
                f"`checkpoint` names {len(files)} files for {len(names)} models; leave one empty for a model without"
            )
        models = []
        for name, file, kind in self._each(names, files):
            if kind:
                if not file and not name.startswith(("local-dir:", "hf-hub:", "hf_hub:")):
                    raise EvaluationError(
                        f"`features` is '{kind}', and model {name} names no place of an ST model; give local-dir:FOLDER or "
                        "hf-hub:ORG/NAME as model, or the folder of the run as `checkpoint`"
                    )
                models.append(load_tokens(file or name, kind))
                continue
            models.append(
                load_backbone(
                    name,
                    pretrained=self.pretrained and not file,
                    checkpoint=Path(file) if file else None,
                    seed=seed,
                )
            )
        random = ", ".join(backbone.name for backbone in models if backbone.weights == "random")
        if random and on_warning is not None:
            on_warning(f"the weights of {random} are random; give `checkpoint=FILE` or `pretrained`")
        others = [name for name in baselines if name in shown and name not in names]
        return models + [load_backbone(name) for name in others]

    def _baselines(self) -> list[str]:
        wanted = [name for name in self.baselines if name]
        if wanted == ["none"]:
            return []
        for name in wanted:
            if PREFIX + name not in BASELINES:
                choices = ", ".join(one.removeprefix(PREFIX) for one in BASELINES)
                raise EvaluationError(f"`baselines` has '{name}'; choose from {choices}, or none alone")
        return [PREFIX + name for name in dict.fromkeys(wanted)]

    def _each(self, names: Sequence[str], files: Sequence[str]) -> list[tuple[str, str, Any]]:
        """Lists name, file and kind of features of each model."""
        kinds = [kind for kind in self.features if kind]
        for kind in kinds:
            if kind not in get_args(TokenKind):
                raise EvaluationError(
                    f"`features` has '{kind}'; choose from {', '.join(get_args(TokenKind))}"
                )
        if not kinds:
            return [(name, file, None) for name, file in zip(names, files, strict=True)]
        if len(names) == 1:
            return [(names[0], files[0], kind) for kind in kinds]
        if len(kinds) not in (1, len(names)):
            raise EvaluationError(
                f"`features` names {len(kinds)} for {len(names)} models; give one, or one for each"
            )
        return list(zip(names, files, kinds * len(names) if len(kinds) == 1 else kinds, strict=True))
