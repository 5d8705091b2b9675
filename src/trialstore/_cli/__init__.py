"""The ``trialstore`` command; built on the public interface only.

```
app.py         puts the commands together: one module for each
check.py       is everything that was acknowledged still there?
recover.py     publish what was cut off
prune.py       delete what is superfluous
terminal.py    what these share: safe text, progress, JSON, errors
demo.py        the demo: options, the order of things, exit codes
ecg.py         the recording that is played: a real electrocardiogram, cut into trials
playback.py    plays it in real time through a Storage
comparison.py  what was read back against what was played, bit by bit
report.py      what the terminal shows
plot.py        what the PNG shows
```
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

#: The packages of the extra ``cli``.
_EXTRA = ("matplotlib", "rich", "typer")
#: Exit code, as a shell tells of a program that Ctrl-C ended.
INTERRUPTED = 130


def main() -> None:
    """Run the command; without the extra ``cli``, say in one line how to install it."""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"trialstore: the command needs {', '.join(missing)}: pip install 'trialstore[cli]'"
        )
    try:
        importlib.import_module("trialstore._cli.app").app()
    except KeyboardInterrupt:  # before a command had begun
        sys.exit(INTERRUPTED)
