"""What is known of patches: HEST layout, counts, gene panels, labels, slide tables → patches, targets, groups."""

from .gene_sets import read_gmt
from .gene_statistics import GeneStatistics, fit_gene_statistics
from .pathways import PathwayScores, pathway_scores
from .token_grid import pool_transcripts
from .transcripts import Transcripts, read_transcripts

__all__ = [
    "GeneStatistics",
    "PathwayScores",
    "Transcripts",
    "fit_gene_statistics",
    "pathway_scores",
    "pool_transcripts",
    "read_gmt",
    "read_transcripts",
]
