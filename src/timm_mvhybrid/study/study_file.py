"""A study's file → its cells: every variant with every seed, each a whole pretraining configuration, and their evaluations.

A study is YAML: ``pretrain`` holds settings of ``timm-mvhybrid pretrain``, ``variants`` what differs from them by name,
``seeds`` the seeds, ``evaluate`` evaluations by name. Mappings of a variant are laid over the common ones, key by key.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluate import registered_tasks
from ..pretrain.config import DataConfig, PretrainConfig
from ..pretrain.plan import PRESETS
from ..runtime.codec import encode, update
from ..runtime.digest import file_sha256
from ..runtime.errors import TimmMVHybridError, check_seed
from ..training.loop import decisive_settings
from .errors import StudyError
from .shipped import PREFIX, read_ready
from .task_options import StudyTask, read_task

_KEYS = ("study", "output", "preset", "pretrain", "variants", "seeds", "evaluate")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant with one seed.

    Attributes:
        name: Of its folder, ``<variant>-seed<seed>``.
        variant: The variant.
        config: Its pretraining, seed and folder included.
        folder: Where everything of it lies: run/, export/, reports/, result.json.
    """

    name: str
    variant: str
    config: PretrainConfig
    folder: Path

    @property
    def seed(self) -> int:
        """The seed of weights, order, crops and masks."""
        return self.config.seed

    def definition(self, data_fingerprint: str) -> str:
        """Identifies all that decides what the pretraining learns; where files lie does not count, what they hold does.

        Args:
            data_fingerprint: Of the samples.
        """
        settings = decisive_settings(encode(self.config), PretrainConfig)
        weights = self.config.model.weights
        if weights is not None and weights.is_file():
            settings["model.weights"] = file_sha256(weights)
        return digest_of({**settings, "data": data_fingerprint})


@dataclass(frozen=True, kw_only=True)
class Study:
    """A matrix of pretraining runs and what each is evaluated by.

    Attributes:
        name: Its name.
        where: The file, for messages.
        output: Folder of cells and page.
        cells: The cells, seed by seed.
        tasks: The evaluations of each cell.
    """

    name: str
    where: str
    output: Path
    cells: tuple[Cell, ...]
    tasks: tuple[StudyTask, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants; others are compared with the first."""
        return tuple(dict.fromkeys(cell.variant for cell in self.cells))

    def cell(self, name: str) -> Cell:
        """Finds a cell.

        Raises:
            StudyError: There is none of that name.
        """
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise StudyError(
            f"{self.where}: has no cell {name!r}; there are {', '.join(cell.name for cell in self.cells)}"
        )


def digest_of(value: Any) -> str:
    """Identifies a value of JSON's types by 32 hexadecimal digits."""
    text = json.dumps(encode(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_study(
    source: str | Path,
    *,
    output: str | Path | None = None,
    sources: Sequence[str | Path] = (),
    roots: Mapping[str, str | Path] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Study:
    """Reads a study and makes its cells; nothing is opened or built yet, see ``check_study``.

    Args:
        source: The YAML file, whose relative paths start at its folder, or ``ready:NAME``.
        output: Folder of cells and page, in place of the file's; a relative one starts here.
        sources: Sources of patches for all cells, in place of the file's; relative ones start here.
        roots: Evaluation → its data, in place of the file's; relative ones start here.
        settings: Dotted name → value, laid over the file, such as ``{"pretrain.num_steps": 100}``.

    Raises:
        StudyError: The file is no study; the message names key, value and remedy.
        PretrainError: A setting of the pretraining is unknown, or outside its range.
    """
    where = str(source)
    if where.startswith(PREFIX):
        text, folder = read_ready(where.removeprefix(PREFIX)), Path.cwd()
    else:
        text, folder = _read_text(Path(source)), Path(source).absolute().parent
    content = _mapping(_load(text, where), where)
    for name, value in (settings or {}).items():
        content = _merged(content, _nested(name, value, where))
    for name, root in (roots or {}).items():
        content = _merged(content, {"evaluate": {name: {"root": str(Path(root).absolute())}}})
    if sources:
        paths = [str(Path(path).absolute()) for path in sources]
        content = _merged(content, {"pretrain": {"data": {"sources": paths}}})
    if output is not None:
        content = {**content, "output": str(Path(output).absolute())}
    return _read(content, folder, where)


def _read(content: Mapping[str, Any], folder: Path, where: str) -> Study:
    _known(content, _KEYS, where)
    for key in ("output", "variants", "seeds", "evaluate"):
        if content.get(key) is None:
            remedy = {"output": "; give a folder", "evaluate": "; name evaluations, or write {} for none"}
            raise StudyError(f"{where}: needs {key}{remedy.get(key, '')}")
    name = str(content.get("study") or Path(where.removeprefix(PREFIX)).stem)
    output = Path(_path(folder, content["output"]))
    preset = content.get("preset", "paper")
    if preset not in PRESETS:
        raise StudyError(f"{where}: preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    common = _mapping(content.get("pretrain") or {}, f"{where}: pretrain")
    seeds = _seeds(content["seeds"], where)
    cells = []
    variants = _variants(content["variants"], where)
    for seed in seeds:
        for variant, changes in variants.items():
            place = f"{where}: variant {variant}"
            for given, at in ((common, f"{where}: pretrain"), (changes, place)):
                for key, hint in (("seed", "list seeds under seeds"), ("output", "each cell has its own")):
                    if key in given:
                        raise StudyError(f"{at}: {key} is the study's; {hint}")
            cell = f"{variant}-seed{seed}"
            place_of_cell = output / "cells" / cell
            config = _configure(preset, _merged(common, changes), seed, place_of_cell / "run", folder, place)
            cells.append(Cell(name=cell, variant=variant, config=config, folder=place_of_cell))
    _refuse_equal(cells, where)
    tasks = _tasks(_mapping(content["evaluate"], f"{where}: evaluate"), folder, where)
    return Study(name=name, where=where, output=output, cells=tuple(cells), tasks=tasks)


def _configure(
    preset: str, settings: Mapping[str, Any], seed: int, output: Path, folder: Path, where: str
) -> PretrainConfig:
    """Makes the configuration of a cell, with paths that no longer depend on where the file is."""
    data = _mapping(settings.get("data") or {}, f"{where}: data")
    sources = data.get("sources")
    if isinstance(sources, str):
        sources = [sources]
    if not sources:
        raise StudyError(
            f"{where}: pretrain.data.sources is missing; name manifests, folders, patch h5, slides or tars"
        )
    settings = _merged(settings, {"data": {"sources": [_path(folder, one) for one in sources]}, "seed": seed})
    for section, key in (("data", "slides"), ("monitor", "probe"), ("model", "weights")):
        inner = settings.get(section)
        if isinstance(inner, Mapping) and isinstance(inner.get(key), str):
            settings = _merged(settings, {section: {key: _path(folder, inner[key])}})
    start = PRESETS[preset](output=output, data=DataConfig(sources=("",)))
    return update(start, settings, where)


def _path(folder: Path, text: Any) -> str:
    return str((folder / Path(str(text)).expanduser()).resolve())


def _tasks(content: Mapping[str, Any], folder: Path, where: str) -> tuple[StudyTask, ...]:
    known = registered_tasks()
    tasks = []
    for name, given in content.items():
        place = f"{where}: evaluate.{name}"
        _check_name(str(name), place)
        options = dict(_mapping(given or {}, place))
        kind = options.pop("kind", name)
        if kind not in known:
            raise StudyError(
                f"{place}: there is no evaluation {kind!r}; kind is one of {', '.join(known)}, by default the name"
            )
        tasks.append(read_task(str(name), known[kind], options, folder, place))
    return tuple(tasks)


def _seeds(value: Any, where: str) -> list[int]:
    seeds = value if isinstance(value, list) else [value]
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds):
        raise StudyError(f"{where}: seeds is {value!r}; it must be whole numbers, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise StudyError(f"{where}: seeds is {value!r}; name each seed once")
    for seed in seeds:
        try:
            check_seed(seed)
        except TimmMVHybridError as error:
            raise StudyError(f"{where}: seeds: {error}") from error
    return seeds


def _variants(value: Any, where: str) -> dict[str, Mapping[str, Any]]:
    content = _mapping(value, f"{where}: variants")
    if not content:
        raise StudyError(f"{where}: variants is empty; name at least one")
    found: dict[str, Mapping[str, Any]] = {}
    for key, changes in content.items():
        name = str(key)
        place = f"{where}: variant {name}"
        _check_name(name, place)
        if name.casefold() in {other.casefold() for other in found}:
            raise StudyError(f"{place}: has the name of another; folders could not be told apart")
        found[name] = _mapping(changes or {}, place)
    return found


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise StudyError(f"{where}: names folders; take letters, digits, hyphens and underscores")


def _refuse_equal(cells: Sequence[Cell], where: str) -> None:
    """Raises StudyError where two variants are the same run: one of them is a mistake."""
    seen: dict[str, str] = {}
    for cell in cells:
        sources = "\n".join((*cell.config.data.sources, str(cell.config.data.slides), cell.config.data.edge))
        other = seen.setdefault(cell.definition(sources), cell.variant)
        if other != cell.variant:
            raise StudyError(
                f"{where}: variants {other} and {cell.variant} learn the same; change or remove one"
            )


def _known(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise StudyError(f"{where}: there is no key {key!r}; there are {', '.join(known)}")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise StudyError(f"{where} is {value!r:.60}; it must be a mapping of names to values")
    return value


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lays one mapping over another, key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _nested(name: str, value: Any, where: str) -> dict[str, Any]:
    first, *rest = name.split(".")
    if first not in _KEYS:
        raise StudyError(f"{where}: there is no key {first!r}; there are {', '.join(_KEYS)}")
    for part in reversed(rest):
        value = {part: value}
    return {first: value}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"{path}: the study cannot be read ({error}); name a YAML file, or {PREFIX}NAME"
        ) from error


def _load(text: str, where: str) -> Any:
    """Reads YAML without objects, and refuses a key that stands twice, of which YAML would keep the last."""
    yaml = yaml_reader()

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined]
        pass

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            line = node.start_mark.line + 1
            raise StudyError(
                f"{where}: {twice[0]!r} stands twice in the mapping from line {line} on; keep one"
            )
        loader.flatten_mapping(node)
        found: dict[Any, Any] = loader.construct_mapping(node, deep=True)
        return found

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise StudyError(f"{where}: not readable as YAML ({' '.join(str(error).split())})") from error


def yaml_reader() -> Any:
    """Imports PyYAML.

    Raises:
        StudyError: It is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise StudyError("studies need PyYAML: pip install 'timm-mvhybrid[pretrain]'") from error
    return yaml
