"""The benchmarks: what recording costs, beside what others take for the same work.

```
frame.py        what a row is, pairs that alternate, medians, verdicts, the machine
process.py      one measurement in a fresh process, pinned, on a healthy or a slow disk
measure.py      that process
content.py      the model: what every trial holds, and how it is held against what was read back
peers/          one module for each way to store trials, behind one small protocol
rows_loop.py    lateness, and the publisher's share in it
rows_calls.py   cost of a call, start
rows_write.py   sustained capture, rows only, a burst
rows_ends.py    the end of a task, memory
rows_read.py    reading back
table.py        the rows in order
report.py       the page, its history and its plots
```
"""
