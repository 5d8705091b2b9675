"""The reading side: plain synchronous calls over published files or the journal; it never writes.

It knows pandas and h5py (both loaded when first needed), and nothing of event loops.
"""
