"""AxoPy's own storage and design modules, to compare with.

Importing the package ``axopy`` needs Qt. These two of its modules do not: they are loaded by file.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

VERSION = "0.2.3"
_INSTALL = f"the tests compare with AxoPy: pip install --no-deps axopy=={VERSION}"


def _load(name: str) -> ModuleType:
    try:
        found = distribution("axopy")
    except PackageNotFoundError:
        pytest.fail(_INSTALL, pytrace=False)
    if found.version != VERSION:
        pytest.fail(f"{_INSTALL} (found {found.version})", pytrace=False)
    path = str(found.locate_file(f"axopy/{name}.py"))
    spec = importlib.util.spec_from_file_location(f"axopy_{VERSION.replace('.', '_')}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


storage = _load("storage")
design = _load("design")
