"""What every verb's command line shares: options, overrides, dry runs, results, exit codes."""

import dataclasses
import errno
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hepta.cli.dry_run import print_dry_run
from hepta.config import HeptaError, load_config
from hepta.console import say
from hepta.cores import choose_waiting
from hepta.runner.verbs import VERBS

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value]...", help="any config key; see below", show_default=False)
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of keys; options win over it")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the resolved config, what is read and written")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout and nothing else")]
Fresh = Annotated[bool | None, typer.Option("--fresh", help="move an existing output aside and start anew")]


def execute(
    verb: str,
    options: dict[str, Any],
    overrides: Sequence[str] | None,
    file: Path | None = None,
    dry_run: bool = False,
    as_json: bool = False,
    show: Callable[[Any], str] = str,
) -> None:
    """Parse, call the library function, print its result.

    Mistakes in keys are told before the function's module, and with it torch, is imported.

    Args:
        verb: a name in ``runner.verbs.VERBS``.
        options: values of the verb's own options; None means not given.
        overrides: ``key=value`` words.
        file: ``--config``.
        dry_run: print the resolved config instead of working.
        as_json: print the result dataclass as JSON.
        show: result → text for people.
    """
    entry = VERBS[verb]
    config = load_config(entry.load_config_class(), file, overrides or (), options)
    if dry_run:
        print_dry_run(config, as_json)
        return
    choose_waiting()
    result = entry.call(config)
    text = to_json(result) if as_json else show(result)
    if text:  # a conversation has printed its answers already
        print(text, flush=True)


def to_json(result: Any) -> str:
    """One JSON object for a result dataclass (or dict)."""
    value = dataclasses.asdict(result) if dataclasses.is_dataclass(result) and not isinstance(result, type) else result
    return json.dumps(value, ensure_ascii=False, default=str)


def describe_keys(verb: str) -> str:
    """The keys of a verb's config as help text.

    Where one key decides which others there are, the keys that differ follow under its value.
    """
    config_class = VERBS[verb].load_config_class()
    keys = config_class.described()
    lines = ["Keys (key=value):", *keys]
    for (key, value), other in config_class.alternatives().items():
        lines += [f"Keys that differ with {key}={value}:", *(line for line in other.described() if line not in keys)]
    return "\n\n".join([*lines, ""])


def guarded(work: Callable[[], Any]) -> int:
    """Run a command; turn errors into one line and DESIGN's exit codes."""
    try:
        work()
    except HeptaError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last saved state")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            say(f"error: {error.filename or 'the disk'}: no space left; free some and repeat the command")
            return 1
        traceback.print_exc()
        say("error: this is a fault in hepta, not in your input; please report it with the lines above")
        return 1
    return 0
