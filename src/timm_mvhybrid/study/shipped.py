"""Studies that come with the package: the questions that the paper leaves open, each as a file of variants."""

from __future__ import annotations

from importlib.resources import files

from .errors import StudyError

PREFIX = "ready:"
_SUFFIX = ".yaml"


def ready_studies() -> dict[str, str]:
    """Lists the studies that come with the package.

    Returns:
        Name → what it asks, the first line of its file.
    """
    folder = files(__package__) / "ready"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(_SUFFIX))
    texts = {name.removesuffix(_SUFFIX): (folder / name).read_text(encoding="utf-8") for name in names}
    return {name: text.splitlines()[0].removeprefix("# ") for name, text in texts.items()}


def read_ready(name: str) -> str:
    """Reads the file of a ready study, as text that can be changed.

    Raises:
        StudyError: There is none of that name.
    """
    known = ready_studies()
    if name not in known:
        raise StudyError(f"{PREFIX}{name}: there is no such study; there are {', '.join(known)}")
    return (files(__package__) / "ready" / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
