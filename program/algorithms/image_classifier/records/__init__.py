"""Channels of records: RecordIO, TFRecord, and augmented manifests, from files or FIFOs."""
