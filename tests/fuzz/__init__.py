"""Fuzzing: every reader is given hostile bytes, briefly by Hypothesis, at length by Atheris.

```
targets.py    one function per reader: any bytes in, nothing but our own exceptions out
seeds.py      whole samples to begin from, made by the real writers
__main__.py   drives a target with Atheris: python -m tests.fuzz TARGET --seconds 120
```
"""
