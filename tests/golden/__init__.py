"""Golden journals: written once, read by every version from then on.

Each folder below is one journal with ``memory.json``, the perfect memory of its recorder. They are
written again, with ``python -m tests.golden.make``, only when the format gets a new version.
"""
