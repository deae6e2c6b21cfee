"""results.json of any task → its dataclass."""

from __future__ import annotations

import json
from pathlib import Path

from ...runtime.codec import decode
from ...runtime.errors import EvaluationError
from .base import SCHEMA_VERSION, Result
from .expression import ExpressionResult
from .patches import ClassificationResult, RetrievalResult
from .slides import SlidesResult, SurvivalResult

_TASKS: dict[str, type[Result]] = {
    kind.task: kind
    for kind in (ExpressionResult, ClassificationResult, RetrievalResult, SlidesResult, SurvivalResult)
}


def result_from_json(text: str, where: str = "results.json") -> Result:
    """Decodes the result of any task.

    Args:
        text: What `Result.to_json` wrote.
        where: The file's name, for messages.

    Returns:
        The result, of its task's class.

    Raises:
        EvaluationError: If the text is not such a result.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"{where}: no JSON ({error}); evaluate again") from error
    if not isinstance(values, dict) or values.get("task") not in _TASKS:
        raise EvaluationError(f"{where}: not a result of 'timm-mvhybrid evaluate'")
    if values.pop("schema", None) != SCHEMA_VERSION:
        raise EvaluationError(f"{where}: written by another version of timm-mvhybrid; evaluate again")
    result: Result = decode(_TASKS[values.pop("task")], values, where)
    return result


def read_result(path: str | Path) -> Result:
    """Reads a results.json, or the one in a folder.

    Args:
        path: The file or its folder.

    Returns:
        The result, of its task's class.

    Raises:
        EvaluationError: If there is no such file or it is no result.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error}); name a folder that 'evaluate' wrote"
        ) from error
    return result_from_json(text, str(path))
