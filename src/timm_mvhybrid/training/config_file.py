"""Files of settings, which people write and runs leave: JSON or YAML → nested dictionaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..runtime.errors import PretrainError


def read_config_file(path: Path) -> dict[str, Any]:
    """Reads settings from a file.

    Args:
        path: JSON, or YAML by its suffix .yaml or .yml.

    Raises:
        PretrainError: The file cannot be read, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PretrainError(f"{path}: the configuration cannot be read ({error})") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        try:
            import yaml
        except ImportError as error:
            raise PretrainError(
                f"{path}: reading YAML needs PyYAML: pip install 'timm-mvhybrid[pretrain]', or write it as JSON"
            ) from error
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise PretrainError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    else:
        try:
            values = json.loads(text)
        except ValueError as error:
            raise PretrainError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise PretrainError(f"{path}: holds no mapping of settings, but {type(values).__name__}")
    return values
