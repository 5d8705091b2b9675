"""Names that are safe everywhere, and where things lie."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from trialstore import _errors
from trialstore._ondisk import layout

SEPARATORS = [
    "a/b",
    "/",
    "/etc/passwd",
    "a\\b",
    "\\\\host\\share",
    "../a",
    "a/..",
    "..\\a",
    "C:\\x",
]
DOTS = ["", ".", "..", "...", ".hidden", "end.", "a..", ".a.", ".git", "..a"]
SPACES = [" ", " a", "a ", "\u00a0a", "a\u3000", "\u2003", "a\u2009", " .", "\u1680a"]
WINDOWS = ["a:b", "C:", "a*", "what?", 'say"so"', "a<b", "a>b", "a|b", "x:$DATA", "*", "?", "<>"]
CONTROLS = [
    *(f"a{chr(code)}b" for code in range(0x20)),
    *(f"a{chr(code)}b" for code in (0x7F, 0x80, 0x85, 0x9B, 0x9F)),
    "name\n",
    "\x00",
    "\x1b[31mred",
]
UNSEEN = [
    f"a{character}b"
    for character in (
        *"\u2028\u2029\u200b\u200e\u200f\u061c\u2060\u2061\ufeff\u00ad\u180e",
        *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
        *"\u3164\u115f\u1160\uffa0\u034f\u17b4\ufff9\U000e0041\U000e0001",
    )
] + ["\u200d", "\u200ca", "a\u200d", "\u3164"]
NOT_CHARACTERS = [
    "a\ud800",
    "\udcff",
    "a\udc80b",
    "\ue000",
    "a\uf03ab",
    "\ufffe",
    "a\uffff",
    "\u0378",
]
DEVICES = [
    *("CON", "con", "Con.txt", "PRN", "AUX", "aux.tar.gz", "NUL", "nul.hdf5", "NUL .txt"),
    *(f"{port}{digit}" for port in ("COM", "lpt") for digit in "0123456789¹²³"),
    *("COM1.log", "LPT9.a.b", "CONIN$", "conout$", "CONOUT$.x", "con  .x", "AUX.", "LPT¹.x"),
]
LONG = ["a" * 129, "é" * 65, "\u4e2d" * 43, "\U0001f600" * 33, "a" * 100_000, "e\u0301" * 65]
NOT_TEXT = [None, 7, 1.5, b"name", Path("name"), ["name"], True]
HOSTILE = [
    *(*SEPARATORS, *DOTS, *SPACES, *WINDOWS, *CONTROLS, *UNSEEN, *NOT_CHARACTERS, *DEVICES, *LONG),
    *NOT_TEXT,
]

FINE = [
    *("p0", "reach", "reach_run-02", "a b", "a.b", "emg.hdf5", "COM10", "CONSOLE", "com", "x.CON"),
    *(
        "journal",
        "interrupted",
        "timing",
        "trials",
        "manifest",
        "lock",
        "base",
        "-rf",
        "~",
        "$HOME",
    ),
    *(
        "é",
        "Müller",
        "\u4e2d\u6587",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "नमस्ते",
        "日本語",
    ),
    *("😀", "a" * 128, "%00", "100%", "a'b", "(1)", "[x]", "{}", "#1", "a&b", "a;b", "=1+1", "nan"),
]


def test_there_are_at_least_a_hundred_hostile_names() -> None:
    """The list below is long enough to mean something."""
    assert len({repr(name) for name in HOSTILE}) >= 100


@pytest.mark.parametrize(
    "name", HOSTILE, ids=[f"{number}: {name!a:.40}" for number, name in enumerate(HOSTILE)]
)
def test_a_hostile_name_is_refused_with_its_kind_and_without_raw_characters(name: object) -> None:
    """Every hostile name raises InvalidName, whose message is safe to print."""
    with pytest.raises(_errors.InvalidName, match=r"^task name ") as caught:
        layout.check_name(name, "task")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
    assert not layout.is_valid_name(name)


@pytest.mark.parametrize("name", FINE)
def test_an_ordinary_name_of_any_script_is_accepted(name: str) -> None:
    """Spaces, inner dots and letters of any script are fine, and the name stays as it is."""
    assert layout.check_name(name, "array") == unicodedata.normalize("NFC", name)
    assert layout.is_valid_name(name)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "empty"),
        (".a", "begins with a dot"),
        ("a ", "ends with a dot, a space"),
        ("a/b", "'/'"),
        ("a\u202eb", r"invisible character '\\u202e'"),
        ("nul.x", "device on Windows"),
        ("a" * 129, "128 bytes"),
        (3, "must be a str, not int"),
    ],
)
def test_the_message_says_which_rule_is_broken(name: object, rule: str) -> None:
    """A refusal names the rule, so that the experimenter can choose another name."""
    with pytest.raises(_errors.InvalidName, match=rule):
        layout.check_name(name, "subject")


def test_two_spellings_of_one_name_are_one_name() -> None:
    """Names are normalised to NFC."""
    assert layout.check_name("e\u0301", "task") == "\u00e9"
    assert layout.check_name("e\u0301" * 64, "task") == "\u00e9" * 64


#: Most characters of every script and kind that may stand in a name, so that few are thrown away.
NAMES = st.text(st.characters(categories=("L", "M", "N", "P", "S", "Zs")), min_size=1, max_size=40)


@settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(NAMES)
def test_an_accepted_name_is_one_entry_of_its_folder(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """Every accepted name can be created as a file directly inside the folder, as it is."""
    assume(layout.is_valid_name(name))
    accepted = layout.check_name(name, "array")
    folder = tmp_path_factory.mktemp("names")
    for path in (
        folder / accepted,
        layout.array_path(folder, accepted),
        layout.pickle_path(folder, accepted),
        folder / layout.building_name(f"{accepted}.hdf5", "0123456789abcdef"),
    ):
        path.write_bytes(b"")
        assert path.parent == folder
        assert path.name in {entry.name for entry in folder.iterdir()}
    assert layout.check_name(accepted, "array") == accepted
    assert accepted in layout.array_names_in(folder)


@given(st.text(alphabet='/\\.:* \x00\u202eCON1a\u0301\u200d"', max_size=12))
def test_no_accepted_name_leaves_its_folder(name: str) -> None:
    """What is accepted has no separator, no parent and no forbidden character."""
    if not layout.is_valid_name(name):
        return
    accepted = layout.check_name(name, "task")
    assert (Path("root") / accepted).parts == ("root", accepted)
    assert not set('/\\:*?"<>|\x00\u202e') & set(accepted)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Reach", "reach"),
        ("STRASSE", "straße"),
        ("\u00c9", "e\u0301"),
        ("re\u200cach", "reach"),
        ("\u03a3", "\u03c2"),
        ("\u1fb3", "\u0391\u0399"),
    ],
)
def test_names_that_differ_in_case_only_are_refused(name: str, other: str) -> None:
    """A name that macOS or Windows takes for an existing one is refused, naming both."""
    with pytest.raises(_errors.InvalidName, match=r"task name .* differs from .* in case"):
        layout.check_not_casefold_equal(name, ["x", other], "task")
    with pytest.raises(_errors.InvalidName):
        layout.check_not_casefold_equal(other, ["x", name], "task")


def test_an_equal_name_is_not_a_casefold_collision() -> None:
    """The same name, in whichever normal form, is TaskExists' business."""
    layout.check_not_casefold_equal("\u00e9", ["e\u0301", "\u00e9", "other"], "task")


@pytest.mark.leaves_files
def test_listing_shows_real_entries_only(tmp_path: Path) -> None:
    """Links, hidden entries, illegal names and entries of the other kind are not listed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    task = tmp_path / "task"
    task.mkdir()
    for folder in ("b", "a", "B c", ".hidden", "fake.hdf5"):
        (task / folder).mkdir()
    for file in (
        "emg.hdf5",
        "Emg2.hdf5",
        ".emg.hdf5.1.building",
        "x.pkl",
        "a:b.hdf5",
        ".hdf5",
        "hdf5",
    ):
        (task / file).touch()
    (task / "linked").symlink_to(outside)
    (task / "linked.hdf5").symlink_to(task / "emg.hdf5")
    assert layout.list_folders(task) == ["B c", "a", "b", "fake.hdf5"]
    assert layout.array_names_in(task) == ["Emg2", "emg"]


def test_paths_of_a_task() -> None:
    """Arrays, pickles, trash and witnesses lie where the layout says."""
    task = Path("data") / "p0" / "reach"
    assert layout.array_path(task, "emg.raw") == task / "emg.raw.hdf5"
    assert layout.pickle_path(task, "ica") == task / "ica.pkl"
    assert layout.trash_path(Path("x/data"), "p0", "reach", "s1") == Path(
        "x/data.trash/p0/reach.s1"
    )
    assert layout.witness_path(task / "000007.segment") == task / "000007.witness"


def test_a_run_has_a_number_of_two_digits_and_is_a_name_itself() -> None:
    """Repeated runs sort in order, and one that is too long to be a name is refused."""
    assert layout.run_name("reach", 2) == "reach_run-02"
    assert layout.run_name("reach", 113) == "reach_run-113"
    with pytest.raises(_errors.InvalidName, match="128 bytes"):
        layout.run_name("a" * 125, 2)


@given(st.integers(min_value=0, max_value=10**12))
def test_segment_numbers_survive_their_file_names(number: int) -> None:
    """A segment's number can be read back from its name."""
    assert layout.segment_number(layout.segment_name(number)) == number


@pytest.mark.parametrize(
    "name",
    [
        "1.segment",
        "000001",
        "0000001.segment",
        "000001.segment~",
        "+00001.segment",
        "\u0660\u0660\u0660\u0660\u0660\u0661.segment",
        "",
    ],
)
def test_other_names_are_no_segments(name: str) -> None:
    """Only the one spelling that we write is a segment."""
    assert layout.segment_number(name) is None


def test_files_being_built_are_hidden_and_known() -> None:
    """A file being built is hidden and recognised; nobody else's hidden file is."""
    assert layout.building_name("emg.hdf5", "3f") == ".emg.hdf5.3f.building"
    assert layout.is_building(".emg.hdf5.3f.building")
    assert not layout.is_building("emg.hdf5")
    assert not layout.is_building(".DS_Store")
    assert not layout.is_building("x.building")
