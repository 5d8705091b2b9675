"""The publishing side: follows the journal in a child process, builds plain files, verifies them.

It is the only writer of HDF5: an I/O error below HDF5 can end the process it happens in, and that
process must never be the one that records.
"""
