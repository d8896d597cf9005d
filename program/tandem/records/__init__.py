"""Streams of records: RecordIO, TFRecord, Pipe mode, gzip."""
