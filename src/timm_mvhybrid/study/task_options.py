"""Values of a study's file → the options of an evaluation, by the names that the command line gives them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from ..embed.baselines import BASELINES, COLOUR, PREFIX
from ..evaluate import BackboneOptions, Task
from ..runtime.codec import decode, encode
from ..runtime.errors import TimmMVHybridError
from .errors import StudyError

Place = tuple[str, ...]
"""Names of the fields that lead to one."""

# what the study itself says: the weights of each cell
_OF_THE_STUDY = ("model", "pretrained", "checkpoint", "features", "bags")
# how fast an evaluation runs and where it keeps embeddings, not what it finds
_FREE = ("batch_size", "device", "num_workers", "cache")
_ARG: Any = type(arg())


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyTask:
    """An evaluation that every cell gets.

    Attributes:
        name: Names it within the study.
        task: Of ``timm-mvhybrid evaluate``, or one of the user's own.
        values: Place of an option → its value.
        baselines: Baselines that are evaluated once, before any cell.
        patches: Of tasks on slides, the folder of what holds each slide's patches; None for other tasks.
    """

    name: str
    task: Task[Any]
    values: Mapping[Place, Any]
    baselines: tuple[str, ...] = ()
    patches: Path | None = None

    def options(self, model: str, *, cache: Path, bags: Path | None = None) -> Any:
        """Makes the options of the task for one model.

        Args:
            model: A name or address of timm whose weights are taken, or a baseline.
            cache: Where embeddings are kept, unless the study's file says where.
            bags: Folder of the slides' embeddings, of tasks that take these.
        """
        is_baseline = model.startswith(PREFIX)
        others = tuple(name for name in self.baselines if is_baseline and PREFIX + name != model)
        models = BackboneOptions(model=(model,), pretrained=not is_baseline, baselines=others or ("none",))
        values = {("models",): models, ("bags",): () if bags is None else (bags,), **self.values}
        for place in leaves(self.task.options):
            if place[-1] == "cache":
                values.setdefault(place, cache)
        return _build(self.task.options, values, (), self.name)

    @property
    def baseline(self) -> str | None:
        """The first baseline, with which the others are evaluated; None for none."""
        if not self.baselines or self.patches is not None:
            return None
        return COLOUR if COLOUR.removeprefix(PREFIX) in self.baselines else PREFIX + self.baselines[0]

    def definition(self) -> dict[str, Any]:
        """Names all that decides what the evaluation finds, apart from the weights."""
        options = encode(self.options(COLOUR, cache=Path("cache")), path=lambda path: path.name)
        patches = {} if self.patches is None else {"patches": self.patches.name}
        return {"kind": self.task.name, **patches, **_decisive(options)}

    def check(self) -> None:
        """Finds out whether what the options name is there.

        Raises:
            StudyError: It is not.
        """
        named = {place[-1]: value for place, value in self.values.items() if place[-1] != "cache"}
        for name, value in {**named, "patches": self.patches}.items():
            for path in value if isinstance(value, tuple) else (value,):
                if isinstance(path, Path) and not path.exists():
                    raise StudyError(
                        f"evaluate.{self.name}: there is no {path}, which {name} names; correct it"
                    )


def read_task(name: str, task: Task[Any], given: Mapping[str, Any], folder: Path, where: str) -> StudyTask:
    """Reads the options of an evaluation.

    Args:
        name: Names it within the study.
        task: The task.
        given: Option → value, by the names of the flags or of the fields.
        folder: Where relative paths start.
        where: The study's file and the place in it, for messages.

    Raises:
        StudyError: An option is unknown, missing, or its value wrong.
    """
    places = leaves(task.options)
    by_name = _by_name(places)
    takes_bags, takes_models = ("bags",) in places, any(place[0] == "models" for place in places)
    if not takes_bags and not takes_models:
        raise StudyError(f"{where}: {task.name} takes no models, so that a study has nothing to hand it")
    values: dict[Place, Any] = {}
    baselines: tuple[str, ...] = () if takes_bags else tuple(BackboneOptions(model=()).baselines)
    patches = None
    for key, value in given.items():
        field = key.replace("-", "_")
        if field in _OF_THE_STUDY:
            raise StudyError(f"{where}: {key} is what the study says of each cell; leave it out")
        if field == "patches" and takes_bags:
            patches = _under(folder, _decoded(Path, value, f"{where}: {key}"))
        elif field == "baselines" and not takes_bags:
            baselines = tuple(_decoded(places["models", "baselines"], value, f"{where}: {key}"))
        elif field in by_name:
            place = by_name[field]
            values[place] = _under(folder, _decoded(places[place], value, f"{where}: {key}"))
        else:
            close = difflib.get_close_matches(field, by_name, n=1)
            known = sorted(one for one in by_name if one not in _OF_THE_STUDY)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise StudyError(f"{where}: {task.name} has no option {key}; {hint}")
    if takes_bags and patches is None:
        raise StudyError(
            f"{where}: {task.name} needs patches, a folder with the patches of each slide, <slide_id>.h5 or a slide"
        )
    baselines = tuple(one for one in baselines if one and one != "none")
    unknown = [one for one in baselines if PREFIX + one not in BASELINES]
    if unknown:
        choices = ", ".join(one.removeprefix(PREFIX) for one in BASELINES)
        raise StudyError(f"{where}: baselines has {unknown[0]!r}; choose from {choices}, or none alone")
    found = StudyTask(name=name, task=task, values=values, baselines=baselines, patches=patches)
    try:
        found.options(found.baseline or COLOUR, cache=folder)
    except TimmMVHybridError as error:
        raise StudyError(f"{where}: {error}") from error
    return found


def leaves(options: type[Any]) -> dict[Place, Any]:
    """Lists the fields of option dataclasses, nested ones by their places → their annotated types."""
    return dict(_leaves(options, ()))


def _leaves(options: type[Any], before: Place) -> Iterator[tuple[Place, Any]]:
    hints = get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        kind = _bare(hints[field.name])
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _leaves(kind, (*before, field.name))
        elif field.init:
            yield (*before, field.name), hints[field.name]


def _by_name(places: Mapping[Place, Any]) -> dict[str, Place]:
    """Finds options by the names of their fields and flags; of several the least nested one."""
    found: dict[str, Place] = {}
    for place, hint in sorted(places.items(), key=lambda item: len(item[0])):
        if place[0] == "models":
            continue
        flags = [mark.name for mark in _marks(hint) if isinstance(mark, _ARG) and mark.name]
        for name in (place[-1], *flags):
            found.setdefault(name.replace("-", "_"), place)
    return found


def _bare(hint: Any) -> Any:
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def _marks(hint: Any) -> tuple[Any, ...]:
    return tuple(getattr(hint, "__metadata__", ()))


def _decoded(hint: Any, value: Any, where: str) -> Any:
    """Reads a value as its type asks, or by its spelling on the command line where it has one of its own."""
    spec = next((mark for mark in _marks(hint) if isinstance(mark, PrimitiveConstructorSpec)), None)
    if spec is not None and value is not None:
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        try:
            return spec.instance_from_str([text])
        except ValueError as error:
            raise StudyError(f"{where} is {value!r}; it must be {spec.metavar}") from error
    if get_origin(_bare(hint)) is tuple and isinstance(value, str | int | float):
        value = [value]
    try:
        return decode(hint, value, where)
    except TimmMVHybridError as error:
        raise StudyError(str(error).replace(f"{where}: it is", f"{where} is")) from error


def _under(folder: Path, value: Any) -> Any:
    """Takes relative paths from a folder."""
    if isinstance(value, tuple):
        return tuple(_under(folder, item) for item in value)
    return (folder / value.expanduser()).resolve() if isinstance(value, Path) else value


def _build(options: type[Any], values: Mapping[Place, Any], before: Place, where: str) -> Any:
    """Makes option dataclasses of values, and of defaults where there is none."""
    hints = get_type_hints(options, include_extras=True)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        place, kind = (*before, field.name), _bare(hints[field.name])
        if place in values:
            arguments[field.name] = values[place]
        elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            arguments[field.name] = (
                _build(kind, values, place, where)
                if default is dataclasses.MISSING
                else _changed(default, values, place)
            )
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise StudyError(
                f"needs {field.name}; give it in the file, or its data by `evaluate={where}=PATH`"
                if field.name == "root"
                else f"needs {field.name}; give it in the file"
            )
    return options(**arguments)


def _changed(options: Any, values: Mapping[Place, Any], before: Place) -> Any:
    """Replaces fields of option dataclasses by the values of their places."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        place, old = (*before, field.name), getattr(options, field.name)
        if place in values:
            changes[field.name] = values[place]
        elif dataclasses.is_dataclass(old):
            changes[field.name] = _changed(old, values, place)
    return dataclasses.replace(options, **changes)


def _decisive(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _decisive(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
        if name not in (*_FREE, "models", "bags")
    }
