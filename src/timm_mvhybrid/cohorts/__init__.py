"""What is known of patches: HEST layout, counts, gene panels, labels, slide tables → patches, targets, groups."""

from .gene_sets import read_gmt
from .gene_statistics import GeneStatistics, fit_gene_statistics
from .pathways import PathwayScores, pathway_scores

__all__ = ["GeneStatistics", "PathwayScores", "fit_gene_statistics", "pathway_scores", "read_gmt"]
