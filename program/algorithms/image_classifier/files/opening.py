"""Opens channels of image files: lists them, agrees with the other hosts, and makes the sources."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence

from algorithms.image_classifier.data.images import ImageReader
from algorithms.image_classifier.data.source import Batching, Host, ReadOptions, Sources
from algorithms.image_classifier.files import listing
from algorithms.image_classifier.files.source import FileSource
from tandem.jobs.channels import Channel


def open_files(channels: Mapping[str, Channel], options: ReadOptions, host: Host) -> Sources:
    """Return the sources of channels of files.

    Raises `UserError` if the channels do not have images as expected, or their labels do not agree.
    """
    images = listing.list_images(channels, options.validation_share, options.seed, host.exchange)
    listed = len(images.training) + len(images.validation)
    reader = ImageReader(options.spec, listed, options.unreadable_share)

    def share(
        items: Sequence[listing.Item], parts: Sequence[int] | None, seed: int | None = None
    ) -> FileSource:
        rows = len(items) if parts is None else sum(parts)
        batching = Batching(rows, options.batch_size, seed, host.rank, host.hosts, parts)
        return FileSource(items, images.labels, reader, batching)

    def read_once(items: Sequence[listing.Item]) -> FileSource:
        batching = Batching(len(items), options.batch_size)
        return FileSource(items, images.labels, reader, batching, memory=0)

    training = share(images.training, images.training_parts, options.seed)
    validation = share(images.validation, images.validation_parts)
    evaluated = {"validation": validation if host.hosts == 1 else read_once(images.validation)}
    if "test" in channels:
        evaluated["test"] = read_once(listing.list_labelled(channels["test"], images.labels))
    own = Counter(label for _, label in images.training)
    counts = host.exchange([own[label] for label in range(len(images.labels))])
    named = [[str(path.relative_to(path.parents[1])), label] for path, label in images.training]
    digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
    sharded = images.training_parts is not None
    return Sources(
        options.spec,
        images.labels,
        training,
        validation,
        evaluated,
        [sum(host_counts) for host_counts in zip(*counts, strict=True)] if sharded else counts[0],
        " ".join(host.exchange(digest) if sharded else [digest]),
        lambda count: listing.read_spread([*images.validation, *images.training], count, reader),
        lambda: listing.report_unreadable(images, reader),
    )
