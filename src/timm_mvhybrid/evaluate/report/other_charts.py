"""Classification, retrieval, slides and survival: result → confusion matrices, bars, ROC and Kaplan–Meier curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ..results import (
    ClassificationResult,
    ClassificationScores,
    PatientRisk,
    RetrievalResult,
    SlidesResult,
    SurvivalScores,
)
from .svg import (
    NUM_COLOURS,
    Scale,
    drawing,
    element,
    horizontal_axis,
    label,
    legend,
    tooltip,
    vertical_axis,
)


def confusion_matrix(result: ClassificationResult, scores: ClassificationScores) -> str:
    """Draws a confusion matrix, folds added up.

    Args:
        result: The result.
        scores: One model under one probe.

    Returns:
        The SVG.
    """
    num = len(result.classes)
    counts = [[sum(fold.confusion[i][j] for fold in scores.folds) for j in range(num)] for i in range(num)]
    cell = 58 if num <= 6 else 40
    left = 26 + 7 * max(len(name) for name in result.classes)
    top = 30 + 5 * max(len(name) for name in result.classes)
    parts = [label(left, 14, "predicted →, true ↓", class_="tick")]
    for i, true in enumerate(result.classes):
        total = sum(counts[i])
        y = top + i * cell
        parts.append(label(left - 8, y + cell / 2 + 4, true, text_anchor="end", class_="name"))
        x = left + i * cell + cell / 2
        parts.append(label(x + 4, top - 8, true, transform=f"rotate(-40 {x:.1f} {top - 8})", class_="name"))
        for j, predicted in enumerate(result.classes):
            share = counts[i][j] / total if total else 0.0
            note = tooltip(f"{true} taken for {predicted}: {counts[i][j]} of {total}")
            x = left + j * cell
            box = {"x": x, "y": y, "width": cell - 2, "height": cell - 2}
            parts.append(element("rect", note, **box, class_="cell"))
            parts.append(element("rect", note, **box, class_="fill-0", fill_opacity=share))
            ink = "on-fill" if share > 0.55 else "name"
            middle = x + cell / 2 - 1
            parts.append(
                label(middle, y + cell / 2, f"{100 * share:.0f} %", text_anchor="middle", class_=ink)
            )
            parts.append(
                label(
                    middle, y + cell / 2 + 14, str(counts[i][j]), text_anchor="middle", class_=f"{ink} small"
                )
            )
    return drawing(left + num * cell + 40, top + num * cell + 8, parts, f"Confusion matrix of {scores.model}")


def retrieval_bars(result: RetrievalResult) -> str | None:
    """Draws precision at the smallest k for every class, models side by side.

    Args:
        result: The result.

    Returns:
        The SVG, or None where nothing was ranked.
    """
    ks = [k for scores in result.scores for k in scores.mean_precision]
    if not ks:
        return None
    k = min(ks, key=float)
    models = [scores.model for scores in result.scores]
    names = list(dict.fromkeys(one.name for scores in result.scores for one in scores.classes))
    left, top, height, bar = 48, 30, 200, 14
    pitch = bar * len(models) + 26
    width = max(left + pitch * len(names) + 16, 360)
    scale = Scale(low=0, high=1, start=top + height, stop=top)
    parts = [*legend(models, left, 16), *vertical_axis(scale, left, width - 8)]
    for place, name in enumerate(names):
        x = left + 10 + place * pitch
        for series, scores in enumerate(result.scores):
            found = next(
                (one.precision.get(k, math.nan) for one in scores.classes if one.name == name), math.nan
            )
            if not math.isfinite(found):
                continue
            parts.append(
                element(
                    "rect",
                    tooltip(f"{name}, {scores.model}: precision@{k} {found:.3f}"),
                    x=x + series * bar,
                    y=scale(found),
                    width=bar - 2,
                    height=scale(0) - scale(found),
                    class_=f"fill-{series % NUM_COLOURS} bar",
                )
            )
        centre = x + bar * len(models) / 2
        turn = f"rotate(-35 {centre:.1f} {top + height + 16})"
        parts.append(label(centre, top + height + 16, name, text_anchor="end", transform=turn, class_="name"))
    longest = max(len(name) for name in names)
    return drawing(
        width, top + height + 30 + 4.5 * longest, parts, f"Precision at {k} of every class", fixed=True
    )


def roc_points(pairs: Iterable[tuple[float, bool]]) -> list[tuple[float, float]]:
    """Finds the corners of a ROC curve.

    Args:
        pairs: Score and whether it is a positive, in any order.

    Returns:
        False positive and true positive rates from (0, 0) to (1, 1); empty if a class is missing. Equal scores make
        one slanted piece.
    """
    ordered = sorted(pairs, key=lambda pair: -pair[0])
    positives = sum(positive for _, positive in ordered)
    negatives = len(ordered) - positives
    if not positives or not negatives:
        return []
    points = [(0.0, 0.0)]
    true = false = 0
    for index, (score, positive) in enumerate(ordered):
        true += positive
        false += not positive
        if index + 1 == len(ordered) or ordered[index + 1][0] != score:
            points.append((false / negatives, true / positives))
    return points


def roc_curves(result: SlidesResult) -> str | None:
    """Draws one ROC curve for each model, the slides of all folds together.

    Args:
        result: The result.

    Returns:
        The SVG, or None if a class is missing.
    """
    side, left, top = 300, 48, 32
    across = Scale(low=0, high=1, start=left, stop=left + side)
    up = Scale(low=0, high=1, start=top + side, stop=top)
    models = [scores.model for scores in result.scores]
    parts = [*legend(models, left, 16), *vertical_axis(up, left, left + side)]
    parts += horizontal_axis(across, top, top + side)
    parts.append(element("line", x1=across(0), y1=up(0), x2=across(1), y2=up(1), class_="chance"))
    drawn = False
    for series, scores in enumerate(result.scores):
        points = roc_points((slide.score, slide.positive) for slide in scores.slides)
        if not points:
            continue
        drawn = True
        path = "M" + "L".join(f"{across(x):.2f},{up(y):.2f}" for x, y in points)
        parts.append(
            element("path", tooltip(scores.model), d=path, class_=f"stroke-{series % NUM_COLOURS} series")
        )
    parts.append(
        label(left + side / 2, top + side + 34, "false positive rate", text_anchor="middle", class_="tick")
    )
    turn = f"rotate(-90 12 {top + side / 2})"
    parts.append(
        label(12, top + side / 2, "true positive rate", text_anchor="middle", transform=turn, class_="tick")
    )
    width = max(left + side + 16, 60 + sum(34 + 7 * len(name) for name in models))
    return drawing(width, top + side + 44, parts, "ROC curves") if drawn else None


def kaplan_meier(times: Sequence[float], events: Sequence[bool]) -> list[tuple[float, float, int]]:
    """Estimates survival by the product limit.

    Source: Kaplan and Meier, Journal of the American Statistical Association 53 (1958). Who is censored at the time
    of an event counts as still at risk.

    Args:
        times: Time to event or to the end of observation.
        events: Whether the event was observed.

    Returns:
        For each distinct time in order: the time, the share that survives it, and the number at risk just before.

    Example:
        >>> kaplan_meier([1, 2, 2, 3], [True, True, False, False])
        [(1, 0.75, 4), (2, 0.5, 3), (3, 0.5, 1)]
    """
    share = 1.0
    steps = []
    for time in sorted(set(times)):
        at_risk = sum(other >= time for other in times)
        died = sum(event and other == time for other, event in zip(times, events, strict=True))
        share *= 1 - died / at_risk
        steps.append((time, share, at_risk))
    return steps


def survival_curves(scores: SurvivalScores, time_unit: str) -> str | None:
    """Draws Kaplan–Meier curves of high and low risk.

    Args:
        scores: One model.
        time_unit: Unit of the times; may be empty.

    Returns:
        The SVG, or None without patients.
    """
    if not scores.patients:
        return None
    groups = {
        "low risk": [patient for patient in scores.patients if not patient.high_risk],
        "high risk": [patient for patient in scores.patients if patient.high_risk],
    }
    left, top, width, height = 76, 32, 460, 240
    last = max(patient.time for patient in scores.patients)
    across = Scale(low=0, high=last if last > 0 else 1, start=left, stop=left + width)
    up = Scale(low=0, high=1, start=top + height, stop=top)
    parts = [*legend(list(groups), left, 16), *vertical_axis(up, left, left + width)]
    parts += horizontal_axis(across, top, top + height)
    if math.isfinite(scores.log_rank_p_value):
        text = f"log-rank p = {scores.log_rank_p_value:.2g}"
        parts.append(label(left + width, 16, text, text_anchor="end", class_="name"))
    unit = f"time, {time_unit}" if time_unit else "time"
    parts.append(label(left + width / 2, top + height + 34, unit, text_anchor="middle", class_="tick"))
    for series, (name, patients) in enumerate(groups.items()):
        parts += _curve(patients, name, series, across, up)
        y = top + height + 56 + 16 * series
        parts.append(label(left - 20, y, name.split(" ")[0], text_anchor="end", class_="tick"))
        for value in across.ticks(6):
            num = sum(patient.time >= value for patient in patients)
            parts.append(label(across(value), y, str(num), text_anchor="middle", class_="tick"))
    title = f"Survival of patients at high and low risk by {scores.model}; below, the number at risk"
    return drawing(left + width + 20, top + height + 84, parts, title)


def _curve(patients: Sequence[PatientRisk], name: str, series: int, across: Scale, up: Scale) -> list[str]:
    if not patients:
        return []
    steps = kaplan_meier([one.time for one in patients], [one.event for one in patients])
    path, survival, before = f"M{across(0):.2f},{up(1):.2f}", {}, 1.0
    for time, share, _ in steps:
        path += f"H{across(time):.2f}V{up(share):.2f}"
        survival[time] = before = share
    kind = f"stroke-{series % NUM_COLOURS} series"
    parts = [element("path", tooltip(f"{name}: {before:.2f} at the end"), d=path, class_=kind)]
    # a tick for each patient whose observation ended before the event
    for patient in patients:
        if not patient.event:
            x, y = across(patient.time), up(survival[patient.time])
            parts.append(element("line", x1=x, x2=x, y1=y - 5, y2=y + 5, class_=kind))
    return parts
