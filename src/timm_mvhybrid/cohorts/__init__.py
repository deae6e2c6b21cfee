"""What is known of patches: HEST layout, counts, gene panels, labels, slide tables → patches, targets, groups."""

from .gene_sets import read_gmt
from .gene_statistics import GeneStatistics, fit_gene_statistics
from .pathways import PathwayScores, pathway_scores
from .st_layout import STSample, read_st_sample, write_st_task
from .token_grid import pool_transcripts
from .transcripts import Transcripts, read_transcripts

__all__ = [
    "GeneStatistics",
    "PathwayScores",
    "STSample",
    "Transcripts",
    "fit_gene_statistics",
    "pathway_scores",
    "pool_transcripts",
    "read_gmt",
    "read_st_sample",
    "read_transcripts",
    "write_st_task",
]
