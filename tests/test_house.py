"""House rules that a machine can hold: sizes, safety, public names."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hepta
from hepta.runner.verbs import VERBS

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "hepta").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_a_file_is_short_and_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    limit = 120 if path.parent.name == "cli" else 400
    assert len(text.splitlines()) <= limit
    assert ast.get_docstring(ast.parse(text)), "a module opens with one sentence that says what it is for"


def test_no_pickle_no_eval_no_remote_code():
    forbidden = re.compile(
        r"\bpickle\b|torch\.load\(|torch\.save\(|(?<![\w.])eval\(|(?<![\w.])exec\(|trust_remote_code=True|shell=True"
    )
    for path in SOURCES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("#")[0]
            assert not forbidden.search(code) or '"""' in code, f"{path}:{number}: {line}"


def test_public_names_resolve():
    for name in hepta.__all__:
        assert getattr(hepta, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = hepta.nonsense


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_its_config_and_function(verb):
    entry = VERBS[verb]
    undocumented = [n for n, f in entry.load_config_class().model_fields.items() if not f.description]
    assert undocumented == []
    assert callable(entry.load_function())


def test_configs_load_without_torch():
    modules = sorted({entry.config.split(":")[0] for entry in VERBS.values()})
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_every_room_has_a_sentence():
    for path in sorted((ROOT / "src" / "hepta").iterdir()):
        if path.is_dir() and (path / "__init__.py").exists():
            assert importlib.import_module(f"hepta.{path.name}").__doc__
