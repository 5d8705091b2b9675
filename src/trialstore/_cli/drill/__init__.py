"""``trialstore drill`` answers whether this computer can record an experiment.

```
command.py   options, the order of things, exit codes
load.py      what is recorded: channels, rate, dtype, chunks
disk.py      the disk alone: throughput, latency of a sync, free space
loop.py      how late an event loop is
recording.py the load through the real recorder, with the loop's lateness
victim.py    a recorder that is killed in the middle
verdict.py   what was found, what gave way, and the sentence for a person
show.py      the table
plot.py      the picture
```
"""
