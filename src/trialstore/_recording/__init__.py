"""Concurrency: the queue, the writer task and the handle on the publisher; no file format."""
