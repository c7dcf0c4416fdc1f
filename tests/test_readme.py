"""Every command the READMEs show is run, on the same recipe with tiny budgets."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = {
    "run": "raw.names=[sanguo-zh,c4-sample] tok.vocab_size=1024 base.max_steps=4 base.minutes=null "
    "base.sequence_length=64 base.batch_tokens=256 base.compile=off chat.max_steps=4 chat.sequence_length=64 "
    "chat.batch_tokens=256 chat.compile=off "
    "feedforward.max_steps=4 feedforward.minutes=null feedforward.batch_tokens=256 "
    "lstm.max_steps=4 lstm.minutes=null lstm.batch_tokens=256",
    "tokenizer": "vocab_size=1024",
    "pretrain": "max_steps=3 minutes=null sequence_length=64 batch_tokens=256 compile=off",
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
    overrides = [w for w in TINY.get(words[1], "").split() if "--help" not in words]
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


def test_every_command_of_the_readme_works(tmp_path, sanguo_zh, chat_en, chat_zh):
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    environment = os.environ | {"COLUMNS": "200"}
    for words in commands("README.md"):
        words = tiny(words)
        if "DOC_ID" in words:
            found = next((tmp_path / words[words.index("DOC_ID") - 1] / "kept").glob("*.parquet"))
            import pyarrow.parquet

            words[words.index("DOC_ID")] = pyarrow.parquet.read_table(found)["doc_id"][0].as_py()
        done = subprocess.run(
            [sys.executable, "-m", "hepta", *words[1:]],
            cwd=tmp_path,
            env=environment,
            input="",
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr
        if "--json" in words:
            json.loads(done.stdout.splitlines()[-1])
