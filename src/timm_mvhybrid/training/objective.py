"""What a run learns, as the loop sees it: batches → losses; everything else of a run is written once, around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..data.samples import CorruptSample


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured of the model between two steps.

    Attributes:
        scores: Number by metric; the first one, the higher the better, decides which checkpoint is the best.
        dataset: On what.
        protocol: How, in one line.
        recorded: Further scores that are results of the model, and go into ``evaluations.json`` as the first one does.
    """

    scores: Mapping[str, float]
    dataset: str
    protocol: str
    recorded: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """What the numbers of a run tell before it is over.

    Attributes:
        event: Its kind, by which the log names it.
        message: What is wrong, and what to try.
        stop: Whether the run ends with it.
    """

    event: str
    message: str
    stop: bool


class Objective(ABC):
    """A loss, what it trains, and the batches that it takes.

    The loop does the rest, for all of them alike: seeds, accumulation, autocast, loss scale, clipping, AdamW and its
    schedules, checkpoints, exact resume, log, progress and stop signals. It calls, for each step, ``prepare`` and
    ``losses`` for each backward pass, then ``after_step``; on all processes alike.

    What a step does may depend on the seed, the step and what ``state_dict`` keeps, on nothing else: then a run that was
    stopped goes on as if it never had been. torch's random numbers are seeded by the loop before each ``prepare``.

    A new objective implements ``batches``, ``losses``, ``state_dict`` and ``load_state_dict``; the other methods have
    defaults for one that has nothing to add.

    Attributes:
        name: What the run does, in a word, for the progress bar.
        trained: The module whose parameters that need gradients are trained. Its children are clipped each by itself.
            Laid out over the processes, by :func:`~timm_mvhybrid.training.parallelize.parallelize`, where there are
            several. Networks that it does not train, such as a teacher or a frozen encoder, are the objective's own.
        num_samples: Samples of an epoch, for records.
        data_fingerprint: Identifies the data; a run goes on with the same ones only.
    """

    name: str = "training"
    trained: nn.Module
    num_samples: int
    data_fingerprint: str

    @abstractmethod
    def batches(self, start_pass: int) -> Generator[Any, None, None]:
        """Yields what one backward pass after the other takes on this process.

        Yields:
            Batches, until the end of the run. Their tensors are kept where losses turn out not to be finite.
        """

    def unreadable(self, batch: Any) -> Sequence[CorruptSample]:
        """Lists what could not be read of a batch and was replaced."""
        return ()

    def prepare(self, batch: Any, step: int) -> Any:
        """Turns a batch into what ``losses`` takes, in float32: moved to the device, and augmented."""
        return batch

    @abstractmethod
    def losses(self, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Computes the losses of one backward pass, under autocast.

        Returns:
            Scalars of this process by name, ``total`` among them, which is differentiated; the others are logged.
        """

    def after_backward(self, step: int) -> None:
        """Looks at the whole gradients of a step, before they are clipped; every process calls it."""
        return None

    def after_step(self, step: int) -> None:
        """Follows the optimiser, such as a teacher its student; not called where a float16 overflow skipped the step."""
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Names what a checkpoint keeps beside optimiser, loss scale and step: weights, centres, counters.

        Returns:
            Nested dictionaries of tensors and numbers; of models as
            :func:`torch.distributed.checkpoint.state_dict.get_model_state_dict` gives them. The names ``optimizer``,
            ``loss_scale`` and ``step`` are the loop's.
        """

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint kept."""

    def resolved(self) -> Mapping[str, Any]:
        """Names what the configuration amounts to on these data, for ``config.json``; a run goes on with the same only."""
        return {}

    def facts(self) -> dict[str, Tensor]:
        """Names what checkpoints state for whoever takes the weights elsewhere; a run that goes on does not read it."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Sorts the parameters for the optimiser.

        Returns:
            Groups as :func:`~timm_mvhybrid.training.optimizer.parameter_groups` makes them; by default two, of which
            vectors (biases, norms) do not decay.
        """
        groups: list[dict[str, Any]] = [
            {"params": [], "lr_multiplier": 1.0, "wd_multiplier": decay, "is_last_layer": False}
            for decay in (1.0, 0.0)
        ]
        for parameter in self.trained.parameters():
            if parameter.requires_grad:
                groups[parameter.ndim <= 1]["params"].append(parameter)
        return [group for group in groups if group["params"]]

    def schedules(self, step: int) -> dict[str, float]:
        """Names what changes with the step alone, for the log."""
        return {}

    def metrics(self) -> dict[str, float]:
        """Measures the step that was just done, for the log, which averages over the processes; only where it is due."""
        return {}

    def check(self, step: int, metrics: Mapping[str, float]) -> Alarm | None:
        """Judges the numbers of a line of the log."""
        return None

    def warnings(self) -> Sequence[str]:
        """Names what a user should know before the first step of a run."""
        return ()

    def baseline(self) -> Evaluation | None:
        """Evaluates what the run starts from, before its first step; nothing of it may change what is learned.

        Returns:
            The result, the same on all processes; None where nothing is due.
        """
        return None

    def evaluate(self, step: int) -> Evaluation | None:
        """Evaluates the model after a step, if it is due; nothing of it may change what is learned.

        Returns:
            The result, the same on all processes; None where nothing is due.
        """
        return None

    def write_weights(self, folder: Path) -> Path | None:
        """Writes the weights of a run that is finished; every process calls it.

        Returns:
            The file; None where checkpoints are all.
        """
        return None
