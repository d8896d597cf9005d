"""Opens a job's channels, which have either image files or records."""

from __future__ import annotations

from collections.abc import Mapping

from algorithms.image_classifier.data.source import Host, ReadOptions, Sources
from algorithms.image_classifier.files.opening import open_files
from algorithms.image_classifier.records.opening import has_records, open_records
from tandem.jobs.channels import Channel


def open_sources(channels: Mapping[str, Channel], options: ReadOptions, host: Host) -> Sources:
    """Find what the channels contain, agree on it with the other hosts, and return the sources.

    Raises `UserError` that names what was found instead of images.
    """
    records = any(has_records(channels[name]) for name in ("training", "validation") if name in channels)
    return (open_records if records else open_files)(channels, options, host)
