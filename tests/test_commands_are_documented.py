"""Every command says what it does and shows an example; the fixed names of the contract exist."""

import re

import click
import pytest
from click.testing import CliRunner
from helpers import program

from batchrank.cli.main import cli
from batchrank.version import __version__

COMMANDS = [
    "run",
    "plan",
    "finish",
    "status",
    "verify",
    "evaluate",
    "report",
    "export",
    "serve",
    "coordinate",
    "providers",
]
SHARED = [
    "--config",
    "--provider",
    "--model",
    "--base-url",
    "--instruct",
    "--top-n",
    "--requests-per-minute",
    "--tokens-per-minute",
    "--max-in-flight",
    "--query-column",
    "--candidates-column",
    "--id-column",
    "--keep",
    "--limit",
    "--summary",
    "--log-format",
]
OPTIONS = {
    "run": [
        *SHARED,
        *("--output", "--max-cost", "--max-failed-rows", "--max-partial-rows"),
        *("--restart", "--yes", "--shard"),
    ],
    "finish": ["--max-failed-rows", "--max-partial-rows", "--json"],
    "plan": SHARED,
    "status": ["--json"],
    "evaluate": ["--qrels", "--against", "--json"],
    "report": ["--output"],
    "export": ["--format", "--output"],
    "providers": ["--json"],
    "serve": ["--port", "--api-key-env"],
    "coordinate": ["--workers", "--requests-per-minute", "--tokens-per-minute", "--host", "--port"],
}


def help_of(command: str) -> str:
    """What `batchrank COMMAND --help` prints."""
    shown = CliRunner().invoke(cli, [command, "--help"], prog_name="batchrank")
    assert shown.exit_code == 0, shown.output
    return shown.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does_and_shows_an_example(command: str) -> None:
    shown = help_of(command)
    assert re.match(rf"Usage: batchrank {command} ", shown)
    said = shown.split("\n\n")[1].strip()
    assert len(said) > 20 and said.rstrip(".").split()[0][0].isupper()
    assert f"Example:\n    batchrank {command} " in shown


@pytest.mark.parametrize("command", OPTIONS)
def test_the_fixed_options_exist(command: str) -> None:
    shown = help_of(command)
    known = {name for option in cli.commands[command].params for name in option.opts}
    assert set(OPTIONS[command]) <= known
    assert all(option in shown for option in OPTIONS[command])


def test_the_short_forms_exist() -> None:
    known = {name for option in cli.commands["run"].params for name in option.opts}
    assert {"-o", "-c"} <= known


def test_there_is_no_command_beyond_the_contract() -> None:
    assert set(cli.commands) == set(COMMANDS)


def test_no_option_takes_a_key() -> None:
    for command in cli.commands.values():
        for option in command.params:
            assert not any(
                re.fullmatch(r"--(api-)?(key|token|secret)", name) for name in option.opts
            )


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_option_is_explained(command: str) -> None:
    options = [one for one in cli.commands[command].params if isinstance(one, click.Option)]
    silent = [option.opts[0] for option in options if not option.help and not option.hidden]
    assert silent == []


def test_an_example_uses_only_options_that_exist() -> None:
    for name in cli.commands:
        known = {flag for option in cli.commands[name].params for flag in option.opts}
        example = re.search(rf"^    batchrank {name} .*$", help_of(name), re.MULTILINE)
        assert example is not None
        used = set(re.findall(r"(?<= )--?[a-z][a-z-]*", example[0]))
        assert used <= known, name


def test_help_and_version_answer_on_the_command_line() -> None:
    shown = program("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for command in cli.commands:
        assert f"\n  {command} " in shown.stdout
    assert program("-h").stdout == shown.stdout
    version = program("--version")
    assert (version.returncode, version.stdout) == (0, f"batchrank, version {__version__}\n")


def test_help_loads_nothing_slow() -> None:
    import subprocess
    import sys

    code = (
        "import sys, batchrank.cli.main; "
        "print([name for name in ('pyarrow', 'aiohttp', 'polars', 'numpy', 'rich') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
