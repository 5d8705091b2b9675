"""The ``trialstore`` command; built on the public interface only.

```
demo.py        the command: options, the order of things, exit codes
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
        importlib.import_module("trialstore._cli.demo").app()
    except KeyboardInterrupt:  # before a command had begun
        sys.exit(INTERRUPTED)
