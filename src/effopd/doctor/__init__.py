"""Looks at a run before it starts: checks, memory, time, cluster, prompts. Returns results."""

from effopd.doctor.checks import Finding
from effopd.doctor.cluster import Cluster, ClusterEstimate, estimate_cluster
from effopd.doctor.preview import Preview, preview
from effopd.doctor.report import Report, check, check_file, named_card

__all__ = [
    "Cluster",
    "ClusterEstimate",
    "Finding",
    "Preview",
    "Report",
    "check",
    "check_file",
    "estimate_cluster",
    "named_card",
    "preview",
]
