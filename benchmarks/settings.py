"""Options that every benchmark takes."""

from dataclasses import dataclass
from pathlib import Path

from .measure import Effort


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options that every benchmark takes."""

    threads: int = 2
    """Threads that torch may use."""
    seconds: float = 45.0
    """Time in s for each group of contenders, beyond the smallest number of rounds."""
    quick: bool = False
    """A smoke run: tiny sizes, two rounds, goals not judged, files only with --output."""
    output: Path | None = None
    """Folder of the Markdown and JSON files; benchmarks/results by default."""
    no_fail: bool = False
    """Exit with 0 also if a goal is missed or cannot be judged."""

    def effort(self, min_rounds: int = 5, max_rounds: int = 101, warmups: int = 1) -> Effort:
        """Returns how long to measure.

        Args:
            min_rounds: Rounds whatever they cost; a smoke run makes two.
            max_rounds: Rounds at most.
            warmups: Unmeasured rounds before.

        Returns:
            The effort.
        """
        if self.quick:
            return Effort(budget_s=0.0, min_rounds=2)
        return Effort(budget_s=self.seconds, min_rounds=min_rounds, max_rounds=max_rounds, warmups=warmups)
