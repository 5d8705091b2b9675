"""Bytes and files: what a trial looks like on disk. Knows no concurrency, no HDF5 and no pandas."""
