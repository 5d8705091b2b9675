"""The fault campaign: every row of the table of faults, with its invariants and its figures.

```
frame.py      what a row is, how much effort it makes, what it found
content.py    the model: what every trial must hold, and how a task is held against it
recorder.py   the process that records the model and tells what was acknowledged, until it is killed
table.py      the rows
report.py     the page that is written from the results of a full campaign
```
"""
