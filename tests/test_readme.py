"""Every command the READMEs show is run, on the same recipe with tiny budgets."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LARGE = ("smollm2-135m", "minilm")
HISTORY = ["feedforward", "lstm", "gpt2", "nano"]
TINY = {
    "recipes/history.yaml": "raw.names=[sentences-zh,c4-sample] tok.vocab_size=1024 "
    + " ".join(f"{id}.max_steps=2 {id}.minutes=null {id}.batch_tokens=256" for id in HISTORY),
    "recipes/demo.yaml": "raw.names=[sentences-zh,c4-sample] tok.vocab_size=1024 base.max_steps=4 base.minutes=null "
    "base.sequence_length=64 base.batch_tokens=256 base.compile=off chat.max_steps=4 chat.sequence_length=64 "
    "chat.batch_tokens=256 chat.compile=off "
    "feedforward.max_steps=4 feedforward.minutes=null feedforward.batch_tokens=256 "
    "lstm.max_steps=4 lstm.minutes=null lstm.batch_tokens=256",
    "tokenizer": "vocab_size=1024",
    "pretrain": "max_steps=3 minutes=null sequence_length=64 batch_tokens=256 compile=off",
    "tune": "max_steps=2 epochs=null compile=off vocab_size=1024",
    "sft": "max_steps=3 sequence_length=64 batch_tokens=256 compile=off",
    "generate": "max_new_tokens=4",
    "chat": "max_new_tokens=4",
}


def commands(readme: str) -> list[list[str]]:
    """The ``hepta …`` lines of a README's shell blocks, as words."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("hepta ")]


def tiny(words: list[str]) -> list[str]:
    """The same command with a small budget."""
    if words[1:2] == ["tokenizer"] and words[2] != "train":
        return words
    known = TINY.get(words[2] if words[1] == "run" else words[1], "")
    overrides = known.split()
    replaced = {w.partition("=")[0] for w in overrides}
    kept = [w for w in words if w.partition("=")[0] not in replaced]
    if words[1] == "tokenizer" and "--vocab-size" in kept:
        kept[kept.index("--vocab-size") + 1] = "1024"
        overrides = []
    return kept + overrides


def test_both_readmes_show_the_same_commands():
    assert commands("README.md") == commands("README.zh-CN.md")
    assert len(commands("README.md")) >= 13


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_readmes_fit_200_lines(readme):
    assert len((ROOT / readme).read_text(encoding="utf-8").splitlines()) <= 200


def works(words: list[str], cli: Callable) -> None:
    """Run one command with a small budget; it must end well."""
    words = tiny(words)
    if "DOC_ID" in words:
        found = next((Path(words[words.index("DOC_ID") - 1]) / "kept").glob("*.parquet"))
        import pyarrow.parquet

        words[words.index("DOC_ID")] = pyarrow.parquet.read_table(found)["doc_id"][0].as_py()
    done = cli(*words[1:])
    assert done.code == 0, f"{shlex.join(words)}\n{done.out[-2000:]}\n{done.err[-3000:]}"
    assert "Traceback" not in done.err
    if "--json" in words:
        json.loads(done.out.splitlines()[-1])
    if words[1] == "fetch" and "tables" in words:
        shorten(Path("tables"))


def shorten(tables: Path) -> None:
    """Leave every twentieth row of each table, so that tuning on it takes seconds."""
    for file in tables.glob("*/*.jsonl"):
        rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(rows[::20]), encoding="utf-8")


def is_large(words: list[str]) -> bool:
    """Whether a command brings a large model, or asks one that another such command made."""
    return any(name in " ".join(words) for name in LARGE)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the recipes, to work in."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_readme_works(place, cli, sanguo_zh, chat_en, chat_zh):
    for words in commands("README.md"):
        if not is_large(words):
            works(words, cli)


@pytest.mark.model
def test_commands_with_large_models_work(place, cli):
    for words in commands("README.md"):
        if is_large(words) or words[1] == "fetch":
            works(words, cli)
