"""The shell blocks of the READMEs and the handbook: found, run in one place, their promised output compared.

A page's fences say what they hold:

- ```` ```bash ```` is run, line by line, as printed. ``hepta …`` runs in this process, ``ls``, ``cat``, ``printf`` and
  the like (``TOOLS``) in bash; anything else fails the test.
- ```` ```console ```` is not run: what needs a network, root or hours. ``tests/test_docs.py`` counts them page by page.
- ```` ```text ```` right after a bash block is its promised output. Each line must be printed by one of the block's
  commands; numbers, times and digests count as ``#``, spaces as one space, ``…`` as anything.
- ```` ```text exact ```` promises the numbers too.
- ```` ```text sample ```` is not compared: what a model wrote, what hours of training gave, what another machine is.

A command is run with a small budget where the printed one takes minutes (``SMALL``). What it makes is then another
thing than the page shows, and so is all that is made from it: of such a block only the labels are held, that is the
words before the first number of each line, or before its first gap of two spaces, and headings of columns.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet
import torch

from hepta.cli.app import main
from hepta.console import WARNINGS

ROOT = Path(__file__).parent.parent
LARGE = ("smollm2-135m", "minilm")
TOOLS = {
    "cat", "cp", "cut", "diff", "du", "echo", "grep", "head", "ls", "mkdir", "mv", "printf", "python", "rm", "sed",
    "sort", "tail", "tr", "wc",
}  # fmt: skip
DEMO = {"raw.names": "[sentences-zh,c4-sample]", "tok.vocab_size": "1024", "tok.sample_bytes": "300000"}
LITTLE = ["max_steps=2", "eval.every=9", "eval.tokens=1024", "batch_tokens=1024"]


def stages(names: str, *keys: str) -> str:
    """The same keys for several stages of a recipe."""
    return " ".join(f"{name}.{key}" for name in names.split() for key in keys)


SMALL = {  # trained for seconds, always
    "run recipes/demo.yaml": " ".join(
        [
            stages("base chat feedforward lstm", *LITTLE, "sequence_length=64"),
            stages("base feedforward lstm", "minutes=null"),
            stages("base chat", "compile=off"),
            stages("ngram-score feedforward-score lstm-score score smaller", "max_documents=8"),
            "int4.sequences=8 smaller.rounds=1",
        ]
    ),
    "run recipes/history.yaml": " ".join(
        [
            stages("feedforward lstm gpt2 nano", *LITTLE, "minutes=null"),
            stages("ngram-1-score ngram-2-score ngram-3-score ngram-score feedforward-score", "max_documents=8"),
            stages("lstm-score gpt2-score nano-score", "max_documents=8"),
        ]
    ),
    "pretrain --profile": " ".join(["max_steps=6", *LITTLE[1:], "minutes=null sequence_length=64 compile=off"]),
    "pretrain --output out/stable": " ".join([*LITTLE, "sequence_length=64 compile=off checkpoint.every=1"]),
    "pretrain --branch": " ".join([*LITTLE, "sequence_length=64 compile=off branch=out/stable@1"]),
    "pretrain": " ".join([*LITTLE, "minutes=null sequence_length=64 compile=off"]),
    "sft": " ".join([*LITTLE, "epochs=null sequence_length=64 compile=off"]),
    "compress distill": " ".join([*LITTLE, "minutes=null sequence_length=64 compile=off"]),
    "compress prune --data": " ".join([*LITTLE, "minutes=null sequence_length=64 compile=off"]),
    "tune": "max_steps=2 epochs=null compile=off vocab_size=1024",
}
PRINTED_AS_OPTIONS = {"--vocab-size": "vocab_size", "--max-new-tokens": "max_new_tokens", "--branch": "branch"}
SMALLER = {  # only where nothing is proven
    "tokenizer train": "vocab_size=1024 sample_bytes=300000",
    "generate": "max_new_tokens=4",
    "chat": "max_new_tokens=4",
    "eval": "max_documents=8",
    "compare out/demo/base out/demo/lstm": "",  # training runs, from what they left
    "compare": "max_documents=8 rounds=1",
    "explain neurons": "tokens=256",
    "compress quantize": "sequences=8 sequence_length=128",
}


@dataclass(frozen=True)
class Block:
    """A bash block of a page: where it stands, its statements, what it promises to print and how exactly."""

    where: str
    statements: tuple[str, ...]
    promise: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Printed:
    """What a statement printed, stderr before stdout, and whether it ran on the very things the page shows."""

    text: str
    as_shown: bool


def fences(page: str) -> list[tuple[int, str, list[str], bool]]:
    """A page's fenced blocks: line number, info, lines as in the fence, whether another block stands right before."""
    found, lines, last = [], (ROOT / page).read_text(encoding="utf-8").splitlines(), -1
    numbers = iter(range(len(lines)))
    for start in numbers:
        opened = re.match(r"( *)```(.*)$", lines[start])
        if opened:
            end = next(n for n in numbers if lines[n].strip() == "```")
            body = [line.removeprefix(opened[1]) for line in lines[start + 1 : end]]
            adjacent = last >= 0 and not "".join(lines[last + 1 : start]).strip()
            found.append((start + 1, opened[2].strip(), body, adjacent))
            last = end
    return found


def blocks(page: str) -> list[Block]:
    """The bash blocks of a page, each with the promise that follows it."""
    found: list[Block] = []
    before = ""
    for line, info, body, adjacent in fences(page):
        if info == "bash":
            found.append(Block(f"{page}:{line}", tuple(statements(body))))
        elif info.split(" ")[0] == "text" and before == "bash" and adjacent:
            found[-1] = Block(found[-1].where, found[-1].statements, tuple(body), info)
        before = info
    return found


def statements(lines: list[str]) -> list[str]:
    """Lines joined where one goes on: a backslash, an open quote, a here-document."""
    found, text, until = [], "", ""
    for line in lines:
        text += line + "\n"
        here = re.search(r"<<\s*['\"]?(\w+)", line)
        if until and line != until:
            continue
        if here and not until:
            until = here[1]
            continue
        if not until and (line.endswith("\\") or is_open(text)):
            continue
        if words(text):
            found.append(text.strip())
        text, until = "", ""
    assert not text.strip(), f"does not end: {text}"
    return found


def is_open(text: str) -> bool:
    """Whether a quote still has to be closed."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return True
    return False


def commands(page: str) -> list[str]:
    """All statements of a page without their comments, to compare one language's with the other's."""
    return [" ".join(words(statement)) for block in blocks(page) for statement in block.statements]


def words(statement: str) -> list[str]:
    """A statement's words, of a here-document its first line's; operators such as ``|`` are words of their own."""
    if "<<" in statement:
        statement = statement.splitlines()[0]
    lexer = shlex.shlex(statement.replace("\\\n", " "), posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(lexer)


def mentions(statement: str, paths: set[str]) -> bool:
    """Whether a statement names one of the paths or something below it."""
    return any(re.search(rf"(?<![\w/.-]){re.escape(path)}(?![\w-])", statement) for path in paths)


def is_output(before: str) -> bool:
    return before in ("--output", ">", ">>", "tee")


@dataclass
class Place:
    """A directory in which every statement of every page is run once, in order.

    Args:
        folder: where; it has the recipes.
        proven: whether ``out/demo`` is the real one, and only training is cut short.
        large: whether commands with large models are run, or passed over.
    """

    folder: Path
    proven: bool = False
    large: bool = False
    done: dict[str, Printed] = field(default_factory=dict)
    other: set[str] = field(default_factory=set)  # paths whose content is another than the page shows
    absent: set[str] = field(default_factory=set)  # paths that a passed-over command would have made

    def walk(self, page: str) -> list[str]:
        """Run a page's blocks; gives what was promised and not printed, one line each."""
        missing = []
        for block in blocks(page):
            printed = [self.run(statement, block.where) for statement in block.statements]
            if None not in printed and block.promise:
                seen = [one for one in printed if one is not None]
                missing += [f"{block.where}: {line}" for line in unkept(block, seen)]
        return missing

    def run(self, statement: str, where: str) -> Printed | None:
        """What a statement printed, now or when it ran before; None where a large model is passed over."""
        parts = words(statement)
        key = statement if "<<" in statement else " ".join(parts)
        if key not in self.done:
            outputs = {part for before, part in pairwise(parts) if is_output(before)}
            if not self.large and (any(name in statement for name in LARGE) or mentions(statement, self.absent)):
                self.absent |= outputs
                return None
            self.absent -= outputs
            stale = mentions(statement, self.other)
            with contextlib.chdir(self.folder):
                code, text, changed = self.execute(statement, parts)
            assert code == 0, f"{where}: {statement}\nexit code {code}\n{text[-3000:]}"
            assert "Traceback" not in text, f"{where}: {statement}\n{text[-3000:]}"
            if "--json" in parts:
                json.loads(text.splitlines()[-1])
            if changed or stale or "tables" in outputs:
                self.other |= outputs
            self.done[key] = Printed(text, as_shown=not changed and not stale)
        return self.done[key]

    def execute(self, statement: str, parts: list[str]) -> tuple[int, str, bool]:
        """Run a statement; gives its exit code, what it printed, and whether its budget was made small."""
        stages = split(parts, "|")
        first = [stage[0] for stage in split(parts, "|", "&&", ";")]
        assert all(name in TOOLS or name == "hepta" for name in first), f"not a tool of the handbook: {statement}"
        if "hepta" not in first:
            return *bash(statement), False
        assert not {"&&", ";", "<", "<<", "2>&1", "&"} & set(parts), f"hepta goes with | and > only: {statement}"
        given, shown, changed = "", "", False
        for stage in stages:
            *_, target = stage if len(stage) > 2 and stage[-2] == ">" else ("",)
            stage = stage[:-2] if target else stage
            if stage[0] == "hepta":
                stage, cut = self.budget(stage)
                changed |= cut
                code, given, errors = hepta(stage[1:], given)
                shown += errors
            else:
                code, given = bash(shlex.join(stage), given)
            if code:
                return code, shown + given, changed
            if target:
                Path(target).write_text(given, encoding="utf-8")
                given = ""
        return 0, shown + given, changed

    def budget(self, stage: list[str]) -> tuple[list[str], bool]:
        """A hepta command as it is run here, DOC_ID filled in, minutes made seconds; and whether those differ."""
        if "DOC_ID" in stage:
            at = stage.index("DOC_ID")
            table = pyarrow.parquet.read_table(next((Path(stage[at - 1]) / "kept").glob("*.parquet")))
            stage = [*stage[:at], table["doc_id"][0].as_py(), *stage[at + 1 :]]
        known = SMALL if self.proven else SMALL | SMALLER
        verb = next((name for name in known if " ".join(stage[1:]).startswith(name)), None)
        large = any(name in " ".join(stage) for name in LARGE)
        if verb is None or (large and verb in SMALLER) or (self.proven and verb == "run recipes/demo.yaml"):
            return stage, False
        if verb == "pretrain" and any(part.startswith("ngram") for part in stage):
            return stage, False  # counting takes seconds and has no budget
        overrides = known[verb].split()
        if verb.startswith("run") and not self.proven:
            overrides = [f"{key}={value}" for key, value in DEMO.items()] + overrides
            self.other.add("out/demo")
        if verb.startswith("run"):
            self.other.add("out/" + Path(stage[2]).stem)
        replaced = {word.partition("=")[0] for word in overrides}
        stage = [word for word in stage if word.partition("=")[0] not in replaced]
        for option, key in PRINTED_AS_OPTIONS.items():
            if option in stage and key in replaced:
                del stage[stage.index(option) : stage.index(option) + 2]
        return stage + overrides, True


def split(parts: list[str], *operators: str) -> list[list[str]]:
    """Words between operators."""
    stages: list[list[str]] = [[]]
    for part in parts:
        if part in operators:
            stages.append([])
        else:
            stages[-1].append(part)
    return stages


def bash(statement: str, given: str = "") -> tuple[int, str]:
    """Run tools; gives exit code and what they printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", statement], input=given, text=True, encoding="utf-8", timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "PATH": path},
    )  # fmt: skip
    return done.returncode, done.stdout


def hepta(arguments: list[str], given: str) -> tuple[int, str, str]:
    """Run hepta in this process, as a first command of a fresh one; gives exit code, stdout, stderr."""
    WARNINGS.clear()
    torch.set_num_threads(1)
    out, errors = io.StringIO(), io.StringIO()
    stdin, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(given.encode()), encoding="utf-8")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            main(arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    finally:
        sys.stdin = stdin
    if arguments[0] == "fetch" and "tables" in arguments and not code:
        shorten(Path("tables"), arguments)
    return code, out.getvalue(), errors.getvalue()


def shorten(tables: Path, names: list[str]) -> None:
    """Leave every twentieth row of each table just fetched, so that tuning on it takes seconds."""
    for file in tables.glob("*/*.jsonl"):
        if file.stem in names:
            rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
            file.write_text("".join(rows[::20]), encoding="utf-8")


def unkept(block: Block, printed: list[Printed]) -> list[str]:
    """The promised lines that no command of the block printed."""
    lines = "\n".join(one.text for one in printed).splitlines()
    if block.kind == "text sample":
        return []
    if not all(one.as_shown for one in printed):
        shown = plain("\n".join(lines))
        return [line for line in block.promise for label in labels(line) if label not in shown]
    view = plain if block.kind == "text exact" else masked
    shown = [view(line) for line in lines]
    return [line for line in block.promise if line.strip() and not any(fits(view(line), one) for one in shown)]


def fits(promised: str, line: str) -> bool:
    """Whether a line is the promised one; … stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, promised.split("…"))), line) is not None


def plain(text: str) -> str:
    """Runs of spaces as one."""
    return re.sub(r"[ \t]+", " ", text).strip()


def masked(line: str) -> str:
    """A line with digests, times and numbers as #."""
    line = re.sub(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,}\b", "#", line)
    line = re.sub(r"\b(\d+h)?(\d+m)?(\d+(\.\d+)?) ?s\b|\b\d+h\d+m\b|\b\d+m\b", "#", line)
    return plain(re.sub(r"[-+−]?\d[\d.,]*(e[-+]?\d+)?", "#", line))


def labels(line: str) -> list[str]:
    """What a line says before its first number or gap; all cells of a line of headings; nothing of prose."""
    cells = [cell for cell in re.split(r"\s{2,}", line.strip()) if cell]
    if not re.search(r"(?<![\w-])[-+]?\d", line):
        return [plain(cell) for cell in cells if "…" not in cell] if len(cells) > 1 else []
    head = re.split(r"\S*\d|…", cells[0])[0].strip()
    return [plain(head)] if re.search(r"[^\W\d_]{2}", head) else []
