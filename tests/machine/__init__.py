"""The state machine: any sequence of recording, faults and reading, held against a plain list.

```
recorder.py   a process that records as it is told, on a disk that fails, dies or loses its power
driver.py     the handle on such processes: start, tell, kill
model.py      what a task must hold: a list, and which of it was acknowledged
world.py      folders, the recorder that is at work, the tasks
machine.py    the rules and the invariants
```
"""
