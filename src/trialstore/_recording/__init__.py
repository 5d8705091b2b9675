"""Concurrency: the bounded queue, the writer task and the handle on the publisher. Knows no file format."""
