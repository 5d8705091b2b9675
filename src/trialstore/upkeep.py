"""Upkeep of recorded data, for programs: what ``trialstore check``, ``recover`` and ``prune`` do.

Three questions about a folder, each at any depth (a task, a subject, a root, a folder of roots):

* `check`: is everything that was acknowledged still there? Reads, and changes nothing.
* `recover`: publish what no recorder will publish any more. First plans, then acts.
* `prune`: delete what is proved to be superfluous. First plans, then acts on a plan.

Nothing here prints, and nothing needs an event loop. An experiment that is running is never
disturbed.

Examples
--------
>>> from trialstore import upkeep
>>> for task in upkeep.check("data").tasks:  # doctest: +SKIP
...     print(task.path, task.status, task.recovered, task.losses)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from trialstore._upkeep import checking, pruning, recovering
from trialstore._upkeep.pruning import Candidate, PruningPlan, PruningReport
from trialstore._upkeep.recovering import RecoveryPlan, RecoveryStep
from trialstore._upkeep.report import (
    CLASSES,
    LOSSES,
    UNKNOWN,
    WHOLE,
    Finding,
    Part,
    Progress,
    Remark,
    Report,
    TaskReport,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    StrPath = str | os.PathLike[str]

__all__ = [
    "CLASSES",
    "LOSSES",
    "UNKNOWN",
    "WHOLE",
    "Candidate",
    "Finding",
    "Part",
    "Progress",
    "PruningPlan",
    "PruningReport",
    "RecoveryPlan",
    "RecoveryStep",
    "Remark",
    "Report",
    "TaskReport",
    "check",
    "plan_pruning",
    "plan_recovery",
    "prune",
    "recover",
]


def check(
    path: StrPath,
    *,
    fallback: StrPath | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Report:
    """Say of every task at or below a folder whether all that was acknowledged is there.

    Guarantee: every byte that has a checksum is read and compared; nothing is written, and a
    recorder that is at work is not disturbed.

    Parameters
    ----------
    path : path-like
        A task, a subject, a root, or a folder of roots.
    fallback : path-like, optional
        The ``fallback_root`` of the recordings, where the journal no longer tells it.
    progress : callable, optional
        Called with a `Progress` while the work goes on.

    Returns
    -------
    Report
        Its ``exit_code`` is 0 if nothing acknowledged is missing, 3 if something is, 1 if one
        cannot tell.

    Raises
    ------
    StorageError
        If `path` is not a folder, or may not be listed.

    Notes
    -----
    Arrival times of chunks (group ``timing`` of an array's file) and what lies in ``interrupted/``
    have no checksums: only their being there is checked. A task of AxoPy has none at all.

    Examples
    --------
    >>> check("data/p0").exit_code  # doctest: +SKIP
    0
    """
    return checking.check_below(Path(os.fspath(path)), _path(fallback), progress)


def plan_recovery(path: StrPath, *, fallback: StrPath | None = None) -> RecoveryPlan:
    """Say what `recover` would do; changes nothing.

    Parameters
    ----------
    path : path-like
        A task, a subject, a root, or a folder of roots.
    fallback : path-like, optional
        The ``fallback_root`` of the recordings, where the journal no longer tells it.

    Raises
    ------
    StorageError
        If `path` is not a folder, or may not be listed.
    """
    return recovering.plan(Path(os.fspath(path)), _path(fallback))


def recover(
    path: StrPath,
    *,
    fallback: StrPath | None = None,
    keep_journal: bool = False,
    progress: Callable[[Progress], object] | None = None,
) -> Report:
    """Publish every task below a folder that was cut off, and check what has become of it.

    Guarantee: killed at any point and run again, it ends as one undisturbed run does. Damaged bytes
    stay where they are, unchanged: the journal of a task that has lost something is kept.

    Parameters
    ----------
    path : path-like
        A task, a subject, a root, or a folder of roots. Tasks that are being recorded, or were
        published, are left as they are.
    fallback : path-like, optional
        The ``fallback_root`` of the recordings, where the journal no longer tells it.
    keep_journal : bool, optional
        Leave the journals in place.
    progress : callable, optional
        Called with a `Progress` while the work goes on.

    Returns
    -------
    Report
        As `check` gives it afterwards; a task that could not be published has a doubt that says
        why.

    Raises
    ------
    StorageError
        If `path` is not a folder, or may not be listed.

    Examples
    --------
    >>> plan_recovery("data").steps  # doctest: +SKIP
    >>> recover("data").exit_code  # doctest: +SKIP
    0
    """
    folder, root = Path(os.fspath(path)), _path(fallback)
    failures = recovering.apply(recovering.plan(folder, root), keep_journal=keep_journal)
    return recovering.with_failures(checking.check_below(folder, root, progress), failures)


def plan_pruning(
    path: StrPath,
    *,
    damaged: bool = False,
    progress: Callable[[Progress], object] | None = None,
) -> PruningPlan:
    """Say what may be deleted, what proves it, and what is kept and why; changes nothing.

    Parameters
    ----------
    path : path-like
        A root, a subject or a task; a root's trash (``data.trash``) belongs to it.
    damaged : bool, optional
        Offer journals and trash that hold damaged data, too.
    progress : callable, optional
        Called with a `Progress` while the work goes on.

    Raises
    ------
    StorageError
        If `path` is not a folder, or may not be listed.
    """
    return pruning.plan(Path(os.fspath(path)), progress, damaged=damaged)


def prune(
    plan: PruningPlan, *, progress: Callable[[Candidate], object] | None = None
) -> PruningReport:
    """Delete what a plan offers, and nothing else.

    Guarantee: what has changed since it was planned, or is in use, is left alone. Killed at any
    point, it leaves each candidate whole or out of sight; the next plan finishes the latter.

    Parameters
    ----------
    plan : PruningPlan
        What `plan_pruning` gave, and somebody has said yes to.
    progress : callable, optional
        Called with each candidate before it is deleted.

    Returns
    -------
    PruningReport
        What was deleted, and what was not and why.

    Examples
    --------
    >>> plan = plan_pruning("data")  # doctest: +SKIP
    >>> [(entry.path, entry.proof) for entry in plan.candidates]  # doctest: +SKIP
    >>> prune(plan).deleted  # doctest: +SKIP
    """
    return pruning.apply(plan, progress)


def _path(path: StrPath | None) -> Path | None:
    return None if path is None else Path(os.fspath(path))
