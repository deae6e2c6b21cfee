"""How expression results are shown: the paper's tables and reference columns, slopes, genes, maps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ...report import Presentation, Result
from ...report.page import figure, section
from ...report.presentation import Reference, Value, Values, metric_of, scores_table
from ...report.table import Table, mark_best, number_cell, text_cell
from ...runtime.codec import decode
from .charts import gene_bars, slope_chart
from .groups import group_bars, groups_of, groups_table
from .maps import ExpressionMap, maps_section
from .tables import PAPER_METRICS, Published, find_drops, gene_means, panel_name, published

_DROP = "drop, %"


class ExpressionPresentation(Presentation):
    """Tables and charts of expression prediction."""

    name = "expression"
    title = "Expression prediction"
    setting = "Folds"
    protocols = {  # noqa: RUF012 - a constant of the class
        "csv": "given splits",
        "random": "random",
        "loso": "LOSO",
        "patient": "leave one patient out",
    }

    def headline(self, result: Result) -> Table:
        """Makes the table of the paper's shape: metrics under every protocol, then the drops."""
        drops = find_drops(result)
        models = list(dict.fromkeys(drop.model for drop in drops))
        columns = []
        for name in PAPER_METRICS:
            percents = {drop.model: drop.percent for drop in drops if drop.metric == name}
            columns.append(mark_best([number_cell(percents.get(model), 1) for model in models], higher=False))
        rows = [
            (text_cell(model), text_cell("drop, %"), *(column[index] for column in columns))
            for index, model in enumerate(models)
        ]
        ddofs = sorted({summary.ddof for summary in result.summaries})
        spread = f" ± standard deviation (ddof {', '.join(map(str, ddofs))})" if ddofs else ""
        caption = (
            f"Expression of {result.dataset}: {panel_name(result)}, ridge preset {result.settings['preset']}; "
            f"mean{spread} over folds."
        )
        return scores_table(result, self, PAPER_METRICS, caption, rows)

    def tables(self, result: Result) -> list[Table]:
        """Makes the tables of groups of genes and of all genes."""
        by_group = groups_table(result, self)
        settings = [
            (model, protocol) for protocol in result.protocols for model in result.models_of(protocol)
        ]
        means = [gene_means(result, model, protocol) for model, protocol in settings]
        genes = list(dict.fromkeys(gene for found in means for gene in found))
        return [
            *([] if by_group is None else [by_group]),
            Table(
                name="genes",
                caption="Every gene: PCC, mean over the folds that have one.",
                columns=("Gene", *(f"{model}, {self.protocol(protocol)}" for model, protocol in settings)),
                rows=tuple(
                    (
                        text_cell(gene),
                        *(number_cell(found[gene][0] if gene in found else None) for found in means),
                    )
                    for gene in genes
                ),
                page_only=True,
            ),
        ]

    def sections(self, result: Result) -> list[str]:
        """Draws slopes, groups of genes, genes and maps."""
        parts = []
        slopes = _slopes([result])
        if slopes:
            hint = "What predicting a study that was never seen costs. In brackets, the drop in percent."
            parts.append(section("Random folds against left-out studies", figure("slope", slopes), hint))
        for protocol in result.protocols:
            by_group = group_bars(result, protocol, self.protocol(protocol))
            if by_group:
                hint = "Mean PCC over genes and folds; whiskers are bootstrap intervals over both."
                title = f"Groups of genes, {self.protocol(protocol)}"
                parts.append(section(title, figure(f"groups-{protocol}", by_group, scroll=True), hint))
        for protocol in result.protocols:
            bars = gene_bars(result, protocol, self.protocol(protocol))
            if bars:
                hint = (
                    "Mean PCC over the folds that have one; whiskers are one standard deviation. Sorted by the first "
                    "model."
                )
                title = f"Genes, {self.protocol(protocol)}"
                parts.append(section(title, figure(f"genes-{protocol}", bars, scroll=True), hint))
        maps = decode(tuple[ExpressionMap, ...], result.arrays.get("maps", []), "arrays.maps")
        if maps:
            hint = (
                "Each spot was predicted while its fold was the test part. Measured and predicted share one colour "
                "scale unless stretched."
            )
            # without an intercept, predictions miss the level of the counts, and one scale would show nothing but that
            no_level = result.settings["preset"] == "hest"
            if no_level:
                hint += " The preset hest fits no intercept: compare patterns, not levels."
            parts.append(section("Maps", maps_section(maps, self.protocols, stretched=no_level), hint))
        return parts

    def groups(self, results: Sequence[Result]) -> list[list[Result]]:
        """Puts results of one panel into one table."""
        panels: dict[str, list[Result]] = defaultdict(list)
        for result in results:
            panels[panel_name(result)].append(result)
        return list(panels.values())

    def comparison_caption(self, results: Sequence[Result]) -> str:
        """Names the panel, and says where the paper published nothing for it."""
        caption = f"Expression, {panel_name(results[0])}; mean ± standard deviation over folds."
        if not self._published(results):
            caption += " The paper published no numbers for this setting."
        return caption

    def values(self, result: Result) -> dict[str, Values]:
        """Takes the paper's metrics, groups of genes, and the drops."""
        shown = {metric_of(result, name).label for name in (*PAPER_METRICS, *groups_of(result))}
        found = {
            model: {key: value for key, value in values.items() if key[1] in shown}
            for model, values in super().values(result).items()
        }
        for drop in find_drops(result):
            if drop.percent is not None:
                label = metric_of(result, drop.metric).label
                found[drop.model][_DROP, label] = Value(value=drop.percent, higher=False, digits=1)
        return found

    def references(self, results: Sequence[Result]) -> list[Reference]:
        """Looks up the paper's columns."""
        columns = []
        for label, one in self._published(results).items():
            values = {
                (self.protocol(protocol), metric_of(results[0], name).label): Value(value=mean, spread=std)
                for (protocol, name), (mean, std) in one.values.items()
            }
            values |= {
                (_DROP, metric_of(results[0], name).label): Value(value=drop)
                for name, drop in one.drops.items()
            }
            columns.append(Reference(label=label, source=one.source, values=values))
        return columns

    def comparison_sections(self, results: Sequence[Result]) -> str:
        """Draws all models' slopes in one chart."""
        slopes = _slopes(results)
        return figure("slope", slopes, "Random folds against left-out studies.") if slopes else ""

    def _published(self, results: Sequence[Result]) -> dict[str, Published]:
        found: dict[str, Published] = {}
        for protocol in dict.fromkeys(protocol for result in results for protocol in result.protocols):
            for one in published(results[0].settings["panel"], protocol):
                # the benchmark's and the extended data's rows of one model are different measurements
                name = one.label if one.drops or protocol == "csv" else f"{one.label}, {protocol}"
                if name in found and found[name].source != one.source:
                    name = f"{name} (HEST benchmark)" if protocol == "csv" else f"{name} (extended)"
                found.setdefault(name, one)
        return found


def _slopes(results: Sequence[Result]) -> str | None:
    return slope_chart(
        [drop for result in results for drop in find_drops(result)],
        [model.label for result in results for model in result.models],
        {name: metric_of(results[0], name) for name in PAPER_METRICS},
    )
