"""Every check this project has, in one place: `nox -l` lists them."""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_external_run = True

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
#: As in tests/fuzz/__main__.py.
FUZZ_TARGETS = (
    *("journal", "frames", "manifest", "members", "table", "task", "archive", "pickle", "lock"),
    "hdf5",
)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the test suite on every async backend, under coverage."""
    session.install("-e.[all]", "--group=test")
    _install_axopy(session)
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session(python="3.11", venv_backend="uv")
def minimums(session: nox.Session) -> None:
    """Run the test suite on the oldest versions pyproject.toml promises."""
    session.install("-e.[all]", "--group=test", "--resolution=lowest-direct")
    _install_axopy(session)
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format, rules and the direction of imports."""
    session.install("-e.", "--group=lint")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types inside, and the completeness of the public types outside."""
    session.install("-e.[all]", "--group=types")
    session.run("mypy")
    session.run("pyright", "--verifytypes", "trialstore", "--ignoreexternal")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure what recording costs beside its peers: an hour, ``-- --quick`` three minutes.

    Whole runs write docs/reference/performance.md; those of single rows (``--only``) do not.
    """
    session.install("-e.[all]", "--group=bench")
    _install_axopy(session)
    docs = [] if "--only" in session.posargs else ["--docs", "docs"]
    session.run("python", "-m", "tests.benchmarks", *docs, *session.posargs)


@nox.session(default=False)
def campaign(session: nox.Session) -> None:
    """Inject every fault: an hour or two, as root on Linux; ``-- --quick`` takes minutes.

    A full one writes docs/reference/reliability.md.
    """
    session.install("-e.[all]", "--group=test", "mfusepy")
    partial = {"--quick", "--only"}.intersection(session.posargs)
    report = [] if partial else ["--report", "docs/reference/reliability.md"]
    session.run("python", "-m", "tests.campaign", *report, *session.posargs)


@nox.session(default=False)
def mutations(session: nox.Session) -> None:
    """Take each safety line away and see a test fail: about five minutes; words choose some."""
    session.install("-e.[all]", "--group=test")
    session.run("python", "-m", "tests.campaign.mutations", *session.posargs)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Record while everything goes wrong: 20 minutes, or ``-- --minutes N``."""
    session.install("-e.[all]", "--group=test")
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session(python="3.11")
def fuzz(session: nox.Session) -> None:
    """Give a reader hostile bytes for some time: ``nox -s fuzz -- journal --seconds 600``.

    Without arguments, every reader for two minutes.
    """
    session.install("-e.[all]", "--group=test", "atheris>=3.0")
    if session.posargs:
        session.run("python", "-m", "tests.fuzz", *session.posargs)
        return
    for target in FUZZ_TARGETS:
        session.run("python", "-m", "tests.fuzz", target, "--seconds", "120")


def _install_axopy(session: nox.Session) -> None:
    """Install AxoPy, for the tests that compare with it, without Qt and the rest of its needs."""
    session.install("--no-deps", "axopy==0.2.3")
