"""The soak: a paced recording for minutes or hours, with everything going wrong now and then.

```
content.py    what each trial of each task holds, so that nothing need be remembered
sick.py       the disk: stalls, and an error once in a while
recording.py  the experiment: tasks one after another and side by side, resumed, cancelled
reader.py     a process that follows and reads while all this goes on
footprint.py  memory, open files, threads and processes
```
"""
