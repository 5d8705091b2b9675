"""``python -m trialstore`` is the ``trialstore`` command."""

from __future__ import annotations

from trialstore._cli import main

if __name__ == "__main__":
    main()
