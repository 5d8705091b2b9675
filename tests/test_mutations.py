"""The list of safety lines fits the code; `nox -s mutations` takes them away."""

from __future__ import annotations

import re

import pytest

from tests.campaign.mutations import MUTATIONS, PROJECT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_the_line_stands_there_once(mutation: Mutation) -> None:
    """Each text is found exactly once, so that taking it away does what the list says."""
    text = (PROJECT / "src/trialstore" / mutation.file).read_text()
    assert text.count(mutation.text) == 1
    assert mutation.instead != mutation.text
    compile(text.replace(mutation.text, mutation.instead), mutation.file, "exec")


@pytest.mark.parametrize("test", sorted({mutation.test for mutation in MUTATIONS}))
def test_its_guard_exists(test: str) -> None:
    """Each test that is named is there; a misspelt one would count as failing."""
    module, _, name = test.partition("::")
    text = (PROJECT / "tests" / f"{module}.py").read_text()
    assert re.search(rf"^(async )?def {name}\(", text, re.MULTILINE)
