"""Folder of a run: configuration + surroundings → records that tell what ran, where and from which code."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..runtime.atomic_file import make_folder, write_file
from ..runtime.errors import PretrainError
from ..runtime.provenance import installed_versions
from ..runtime.ranks import Ranks

_GIT_TIMEOUT_S = 30


class RunDirectory:
    """Where a run keeps what it writes.

    Made and written by the first process only; the others use it for its paths.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.config = path / "config.json"
        """The resolved configuration."""
        self.environment = path / "environment.json"
        """The surroundings of the latest start."""
        self.starts = path / "starts.jsonl"
        """The surroundings of every start, one line each."""
        self.uncommitted = path / "uncommitted.diff"
        """How the code differed from its commit at the latest start; absent if it did not."""
        self.metrics = path / "metrics.jsonl"
        """One object a logged step."""
        self.evaluations = path / "evaluations.json"
        """Downstream results for the model card."""
        self.checkpoints = path / "checkpoints"
        self.plots = path / "plots"
        self.tensorboard = path / "tensorboard"

    def holds_run(self) -> bool:
        """Says whether a run was started here; other files in the folder, such as a scheduler's logs, are not a run."""
        return any(path.exists() for path in (self.config, self.metrics, self.checkpoints))

    def create(self, config: Mapping[str, Any], *, resume: bool) -> None:
        """Makes the folder and writes down what starts in it.

        Args:
            config: The resolved configuration, of JSON's types. On resuming it replaces the earlier one; whether
                the two agree is for the caller to check before, with ``read_config``.
            resume: Go on where a run is there already; where none is, this starts one.

        Raises:
            PretrainError: A run is there already and ``resume`` is off, or the configuration is not strict JSON.
            OutputError: The folder cannot be written.
        """
        if self.holds_run() and not resume:
            raise PretrainError(
                f"{self.path}: holds a run already; go on with `resume='auto'`, or choose another `output`"
            )
        try:
            text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise PretrainError(f"{self.config}: the configuration is not JSON ({error})") from error
        for folder in (self.path, self.checkpoints, self.plots):
            make_folder(folder)
        git, patch = git_state(Path.cwd())
        starts = self._earlier_starts()
        environment = {**describe_environment(), "git": git, "num_starts": len(starts) + 1}
        line = json.dumps(environment, ensure_ascii=False)
        write_file(self.config, text)
        write_file(self.environment, json.dumps(environment, indent=2, ensure_ascii=False) + "\n")
        write_file(self.starts, "".join(f"{start}\n" for start in (*starts, line)))
        if patch:
            write_file(self.uncommitted, patch)
        else:
            self.uncommitted.unlink(missing_ok=True)

    def read_config(self) -> dict[str, Any] | None:
        """Reads the configuration of the run that is here.

        Returns:
            The configuration; None where there is none.

        Raises:
            PretrainError: It is there but damaged.
        """
        config = _read_json(self.config, "choose another `output`")
        if config is not None and not isinstance(config, dict):
            raise PretrainError(
                f"{self.config}: must hold a JSON object; repair it, or choose another `output`"
            )
        return config

    def add_evaluation(self, *, metric: str, value: float, dataset: str, protocol: str) -> None:
        """Writes down a downstream result, in place of an earlier one of the same metric, data and protocol.

        Raises:
            PretrainError: The value is not finite, or the records are damaged.
            OutputError: The records cannot be written.
        """
        if not math.isfinite(value):
            raise PretrainError(
                f"{self.evaluations}: {metric} on {dataset} is {value}, which is not a result"
            )
        entries = _read_json(self.evaluations, "move it away")
        entries = [] if entries is None else entries
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise PretrainError(
                f"{self.evaluations}: must hold a list of objects; repair it, or move it away"
            )
        entry = {"metric": metric, "value": value, "dataset": dataset, "protocol": protocol}
        key = ("metric", "dataset", "protocol")
        kept = [old for old in entries if [old.get(name) for name in key] != [entry[name] for name in key]]
        text = json.dumps([*kept, entry], indent=2, ensure_ascii=False) + "\n"
        write_file(self.evaluations, text)

    def _earlier_starts(self) -> list[str]:
        try:
            return [line for line in self.starts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise PretrainError(
                f"{self.starts}: cannot be read ({error}); repair it, or move it away"
            ) from error


def _read_json(path: Path, remedy: str) -> Any:
    """Reads a file; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PretrainError(f"{path}: not readable as JSON ({error}); repair it, or {remedy}") from error


def describe_environment() -> dict[str, Any]:
    """Describes what a run runs on.

    Returns:
        Time, versions, devices, number of processes and command line, of JSON's types.
    """
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    described: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": installed_versions(),
        "num_cpus": num_cpus,
        "num_threads": torch.get_num_threads(),
        "world_size": Ranks.from_environment().world_size,
        "command": sys.argv,
    }
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        described["cuda"] = torch.version.cuda
        described["devices"] = [f"{device.name}, {device.total_memory / 2**30:.0f} GiB" for device in devices]
        if torch.distributed.is_available() and torch.distributed.is_nccl_available():
            described["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())
    else:
        described["devices"] = ["cpu"]
    return described


def git_state(folder: Path) -> tuple[dict[str, Any] | None, bytes]:
    """Reads the state of the repository that a folder lies in.

    Returns:
        Commit (None before the first one), whether files differ from it or are not tracked (``dirty``), and the SHA-256
        of the differences of tracked files; and the differences themselves. None and nothing outside a repository or
        without git.
    """

    def git(*arguments: str) -> bytes | None:
        try:
            result = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                timeout=_GIT_TIMEOUT_S,
                # status refreshes the index, which would need a lock that others may hold
                env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout if result.returncode == 0 else None

    status = git("status", "--porcelain")
    if status is None:
        return None, b""
    commit = git("rev-parse", "--verify", "HEAD")
    patch = git("diff", "--binary", "--no-ext-diff", "--no-color", "HEAD") if commit else None
    return {
        "commit": commit.decode().strip() if commit else None,
        "dirty": bool(status.strip()),
        "diff_sha256": hashlib.sha256(patch).hexdigest() if patch else None,
    }, patch or b""
