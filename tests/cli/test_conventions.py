"""Conventions every verb keeps: exit codes, one-line errors, --dry-run, --json, help without torch."""

import json
import subprocess
import sys

import pytest

from hepta.cli.app import VERB_HELP


def hepta(*arguments: str, **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hepta", *arguments], capture_output=True, text=True, timeout=120, **more
    )


def test_overview_lists_every_verb_and_loads_neither_torch_nor_pydantic():
    code = (
        "import sys\nfrom hepta.cli.app import main\n"
        "try:\n    main(['--help'])\nfinally:\n    print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("False False")
    for verb in VERB_HELP:
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize("verb", sorted(VERB_HELP))
def test_each_verb_has_help_with_an_example_and_no_torch(verb):
    code = (
        f"import sys\nfrom hepta.cli.app import main\n"
        f"try:\n    main(['{verb}', '--help'])\nfinally:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.rstrip().endswith("False"), done.stdout[-300:] + done.stderr[-300:]
    assert f"hepta {verb}" in done.stdout


def test_unknown_verb_is_exit_2():
    done = hepta("pretrian")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_misspelt_key_names_the_nearest():
    done = hepta("pretrain", "--data", "nowhere", "--output", "out", "max_step=3")
    assert done.returncode == 2
    assert done.stderr == "error: unknown key 'max_step'; did you mean 'max_steps'?\n"


def test_word_for_a_number_is_one_line():
    done = hepta("pretrain", "--data", "nowhere", "--output", "out", "max_steps=ten")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "max_steps" in done.stderr
    assert "'ten'" in done.stderr


def test_dry_run_writes_nothing_and_prints_the_resolved_config(tmp_path):
    done = hepta("pretrain", "--data", "d", "--output", str(tmp_path / "o"), "--dry-run", "--json", "lr=1e-3")
    value = json.loads(done.stdout)
    assert value["config"]["lr"] == 1e-3
    assert value["writes"] == str(tmp_path / "o")
    assert list(tmp_path.iterdir()) == []
