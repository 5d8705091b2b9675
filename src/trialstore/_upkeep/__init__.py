"""Upkeep of data that is on disk already: look at it, finish it, clear away what it needs no more.

```
report.py       what was found, as plain records
gathering.py    collects the findings of one task while it is looked at
discovery.py    which folders are tasks, and what in them is not ours
published.py    plain files against the manifest
journals.py     a journal that is not published yet
foreign.py      a task without a manifest
checking.py     one task, many tasks
proof.py        whether everything in a journal stands in the published files
recovering.py   plan and apply: publish what no recorder will publish any more
pruning.py      plan and apply: delete what is proved to be superfluous
```

Only `trialstore.upkeep` is public.
"""
