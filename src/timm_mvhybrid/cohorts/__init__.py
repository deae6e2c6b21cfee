"""What is known of patches: HEST layout, counts, gene panels, labels, slide tables → patches, targets, groups."""

from .gene_sets import read_gmt
from .gene_statistics import GeneStatistics, fit_gene_statistics
from .hest_sample import HestFolder
from .image_element import write_image_element
from .pathways import PathwayScores, pathway_scores
from .placed_transcripts import write_placed_transcripts
from .prepare import PreparedSample, prepare_sample
from .space_ranger import VisiumFolder
from .spatialdata_store import SpatialDataStore
from .spot_sample import PatchOptions, SpotSample, SpotSource
from .st_layout import STSample, STSection, read_st_sample, write_st_task
from .study_table import Splits, write_splits
from .token_grid import pool_transcripts
from .transcripts import Transcripts, read_transcripts
from .visium_hd import VisiumHDFolder
from .xenium import XeniumFolder

__all__ = [
    "GeneStatistics",
    "HestFolder",
    "PatchOptions",
    "PathwayScores",
    "PreparedSample",
    "STSample",
    "STSection",
    "SpatialDataStore",
    "Splits",
    "SpotSample",
    "SpotSource",
    "Transcripts",
    "VisiumFolder",
    "VisiumHDFolder",
    "XeniumFolder",
    "fit_gene_statistics",
    "pathway_scores",
    "pool_transcripts",
    "prepare_sample",
    "read_gmt",
    "read_st_sample",
    "read_transcripts",
    "write_image_element",
    "write_placed_transcripts",
    "write_splits",
    "write_st_task",
]
