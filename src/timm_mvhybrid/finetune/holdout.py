"""Samples → those to train on and those to validate on, which share no study or no patient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError
from ..ssl.counter_random import combine
from .measured import MeasuredSample

Split = Literal["auto", "study", "patient", "none"]
_LARGEST_SHARE = 0.5


@dataclass(frozen=True, eq=False, kw_only=True)
class HoldOut:
    """Which samples are held out.

    Attributes:
        by: What the two parts do not share: "study", "patient", or "none" if nothing is held out.
        groups: Studies or patients that are held out.
        held_out: For each sample, whether it is for validation, (samples,).
    """

    by: Literal["study", "patient", "none"]
    groups: tuple[str, ...]
    held_out: NDArray[np.bool_]


def hold_out(
    samples: Sequence[MeasuredSample],
    *,
    split: Split = "auto",
    groups: Sequence[str] = (),
    fraction: float = 0.2,
    seed: int = 0,
) -> HoldOut:
    """Chooses what is held out for validation: whole studies, or whole patients.

    A patient's samples in both parts would let a model recognise the patient. So what is not known to be of other studies
    or patients is not held out; ``split="none"`` trains on everything and validates on nothing.

    Args:
        samples: All samples.
        split: "study", "patient", "auto" (studies where there are several, otherwise patients), or "none".
        groups: Studies or patients to hold out; some at random by default.
        fraction: Fraction of the measured patches to hold out at least, where ``groups`` names none; where the studies or
            patients are few and large it may be less than this.
        seed: Of the choice.

    Returns:
        The choice. Every panel keeps samples to train on.

    Raises:
        DataError: If studies or patients are unknown, there is only one, a name is unknown, or a panel would be left
            without samples to train on; the message names the table and its column.
    """
    if split == "none":
        if groups:
            raise DataError(
                "`hold_out` names groups, and `split` is 'none'; give `split='study'` or `split='patient'`"
            )
        return HoldOut(by="none", groups=(), held_out=np.zeros(len(samples), dtype=np.bool_))
    if not 0 < fraction < 1:
        raise DataError(f"`validation_fraction` is {fraction}; give a number between 0 and 1")
    by = _kind(samples, split)
    names = [getattr(sample, by) for sample in samples]
    known = sorted(set(names))
    unknown = [name for name in groups if name not in known]
    if unknown:
        raise DataError(f"`hold_out` names the {by} '{unknown[0]}'; known are {', '.join(known)}")
    chosen = tuple(sorted(set(groups))) if groups else _draw(samples, names, fraction, seed)
    if not chosen or _left_without(samples, names, chosen):
        panel = _left_without(samples, names, chosen or known)
        raise DataError(
            f"`hold_out`: no {by} can be held out"
            + (f" ({', '.join(chosen)})" if chosen else "")
            + f" without taking all samples of the panel '{panel}'; add samples of another {by} to it, or give "
            "`split='none'`"
        )
    return HoldOut(by=by, groups=chosen, held_out=np.array([name in chosen for name in names]))


def _kind(samples: Sequence[MeasuredSample], split: Split) -> Literal["study", "patient"]:
    no_study = next((sample for sample in samples if not sample.study), None)
    if no_study is not None:
        raise DataError(
            f"{no_study.studies_file}: missing, so which samples are of one patient is unknown, and a validation on others "
            "cannot be promised; write it with the columns sample_id, study, patient, or give `split='none'` to train "
            "without validation"
        )
    studies = sorted({sample.study for sample in samples})
    if split == "study" or (split == "auto" and len(studies) > 1):
        if len(studies) < 2:
            raise DataError(
                f"{samples[0].studies_file}: the column study has '{studies[0]}' only, and `split` is 'study'; give "
                "`split='patient'`, or add a cohort of another study"
            )
        return "study"
    no_patient = next((sample for sample in samples if not sample.patient), None)
    if no_patient is not None:
        only = f"the column study has '{studies[0]}' only, and " if len(studies) == 1 else ""
        raise DataError(
            f"{no_patient.studies_file}: {only}there is no column patient, so samples of one patient could be on both "
            "sides of the validation; add the column, or give `split='none'` to train without validation"
        )
    patients = sorted({sample.patient for sample in samples})
    if len(patients) < 2:
        raise DataError(
            f"{samples[0].studies_file}: the column patient has '{patients[0]}' only, so none can be held out; add samples "
            "of another patient, or give `split='none'` to train without validation"
        )
    return "patient"


def _draw(
    samples: Sequence[MeasuredSample], names: Sequence[str], fraction: float, seed: int
) -> tuple[str, ...]:
    """Takes groups in random order until they are enough, leaving out those that would be too many."""
    sizes: dict[str, int] = defaultdict(int)
    for sample, name in zip(samples, names, strict=True):
        sizes[name] += int(sample.measured.sum())
    order = sorted(sizes)
    total, taken = sum(sizes.values()), 0
    chosen: list[str] = []
    for index in combine(seed, np.arange(len(order))).argsort(kind="stable").tolist():
        name = order[index]
        if taken >= fraction * total:
            break
        if taken + sizes[name] <= _LARGEST_SHARE * total and not _left_without(
            samples, names, [*chosen, name]
        ):
            chosen.append(name)
            taken += sizes[name]
    if not chosen:
        possible = [name for name in order if not _left_without(samples, names, [name])]
        chosen = [min(possible, key=lambda name: sizes[name])] if possible else []
    return tuple(sorted(chosen))


def _left_without(samples: Sequence[MeasuredSample], names: Sequence[str], chosen: Sequence[str]) -> str:
    """Names a panel that would have no sample to train on; empty if there is none."""
    kept = {
        sample.entry.panel_name
        for sample, name in zip(samples, names, strict=True)
        if name not in chosen and sample.measured.any()
    }
    return next((panel for sample in samples if (panel := sample.entry.panel_name) not in kept), "")
