"""The fault campaign: every row of the table of faults, with its invariants and its figures.

```
frame.py      what a row is, how much effort it makes, what it found
content.py    the model: what every trial must hold, and how a task is held against it
recorder.py   the process that records the model and tells what was acknowledged, until it is killed
examine.py    what is looked at beside the model: published paths, digests, leftovers
lanes.py      processes that fork what is to be killed, try after try
failpoints.py a disk that kills its process at the n-th call
blocklog.py   a block device that logs every write, so that its power can be cut anywhere
table.py      the rows
report.py     the page that is written from the results of a full campaign
```
"""
