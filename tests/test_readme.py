"""The README cannot drift: its code runs, its commands are the ones that are checked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import trialstore

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Code blocks of the README in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_python_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a reader pastes, block after block, into a file works as the README says."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    for number, code in enumerate(blocks("python")):
        exec(compile(code, f"README.md, python block {number}", "exec"), names)
    assert names["first"].shape == (2, 200)
    assert names["window"].shape == (2, 50)
    assert names["reader"].trials["target"].tolist() == ["left", "right"]
    printed = capsys.readouterr().out
    assert "complete {'rig': 'A'}" in printed
    assert "<Receipt trial 0: durable>" in printed


def test_the_two_commands_are_single_lines() -> None:
    """A fresh clone needs exactly two commands, and each can be pasted as one line."""
    demo, tests = blocks("sh")
    assert demo.rstrip("\n").endswith("trialstore demo")
    assert tests.rstrip("\n").endswith("-m pytest -n 3 --dist worksteal")
    assert demo.count("\n") == tests.count("\n") == 1


def test_the_test_command_is_what_ci_runs() -> None:
    """Continuous integration runs the README's test command word for word."""
    command = blocks("sh")[1].strip()
    assert command in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def test_the_demo_command_is_named_in_the_metadata() -> None:
    """The extra and the script that the demo command uses are the package's own."""
    metadata = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^cli = \[", metadata, flags=re.MULTILINE)
    assert 'trialstore = "trialstore._cli:main"' in metadata


def test_links_lead_to_files() -> None:
    """No relative link of the README is dead."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []


def test_every_name_that_code_words_import_is_public() -> None:
    """Errors and classes that the README names are exported."""
    named = set(re.findall(r"`([A-Z]\w+)`", README)) - {"F_FULLFSYNC"}
    assert {"DamagedData", "TaskExists", "WriteFailed"} <= named
    assert named - set(trialstore.__all__) == set()


def test_importing_the_package_loads_nothing_heavy() -> None:
    """``import trialstore`` loads no pandas, h5py, NumPy or event loop, and starts no thread."""
    code = (
        "import sys, threading, trialstore;"
        "heavy = {'pandas', 'h5py', 'numpy', 'anyio', 'asyncio', 'trio', 'typer', 'rich'};"
        "print(sorted(heavy & set(sys.modules)), threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "1"]


def test_recording_loads_neither_pandas_nor_h5py(tmp_path: Path) -> None:
    """A process that only records never pays for the reading side."""
    code = """
import sys, anyio
from trialstore import Storage

async def main(root):
    async with Storage(root) as storage:
        storage.subject_id = "p0"
        async with storage.create_task("reach") as task:
            await task.write({"target": 1})

anyio.run(main, sys.argv[1])
print(sorted({"pandas", "h5py"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]"]
