"""Stage claims: finished work is not done again, changed work never overwrites, nothing half-written is kept."""

import errno
import json
from pathlib import Path

import pytest

from hepta import stage as stage_module
from hepta.config import (
    HeptaError,
    MachineError,
    StageConfig,
    budget,
    identity,
    input_path,
    operational,
    preset_or_path,
)
from hepta.stage import atomic_directory, claim, digest_of, read_manifest, withdraw, write_atomic


class Sample(StageConfig):
    source: str = input_path(doc="input")
    size: int = identity(1, "size")
    steps: int = budget(1, "steps")
    workers: int = operational(1, "workers")


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("甲乙丙")
    return path


def make(tmp_path, source, **changes) -> Sample:
    return Sample(**{"output": tmp_path / "out", "source": str(source)} | changes)


def finished(tmp_path, source) -> None:
    claim(make(tmp_path, source), "verb", 1).finish("digest", {"rows": 3})


def test_done_is_done_even_with_other_workers(tmp_path, source):
    finished(tmp_path, source)
    again = claim(make(tmp_path, source, workers=8), "verb", 1)
    assert again.state == "done"
    assert again.manifest["facts"] == {"rows": 3}


def test_budget_goes_on(tmp_path, source):
    finished(tmp_path, source)
    assert claim(make(tmp_path, source, steps=2), "verb", 1).state == "partial"


def test_unfinished_goes_on(tmp_path, source):
    claim(make(tmp_path, source), "verb", 1)._lock.close()
    assert claim(make(tmp_path, source), "verb", 1).state == "partial"


def test_an_output_below_a_file_is_told_in_one_line(tmp_path, source):
    with pytest.raises(HeptaError, match="in.txt is a file"):
        claim(make(tmp_path, source, output=source / "out"), "verb", 1)
    with pytest.raises(HeptaError, match="choose another --output"):
        write_atomic(source / "deep" / "page.html", "")


@pytest.mark.parametrize("done", [True, False])
def test_changed_identity_is_refused_by_name_and_fresh_moves_aside(tmp_path, source, done):
    """Trap C7: a changed threshold must never meet a stale completion marker."""
    first = claim(make(tmp_path, source), "verb", 1)
    if done:
        first.finish("digest", {})
    first._lock.close()
    with pytest.raises(HeptaError, match=r"another size \(1 before, 2 now\); use --fresh"):
        claim(make(tmp_path, source, size=2), "verb", 1)
    assert claim(make(tmp_path, source, size=2, fresh=True), "verb", 1).state == "new"
    assert len(list(tmp_path.glob("out.old-*"))) == 1


def test_changed_input_content_is_noticed_and_a_moved_one_is_not(tmp_path, source):
    finished(tmp_path, source)
    moved = source.rename(tmp_path / "elsewhere.txt")
    assert claim(make(tmp_path, moved), "verb", 1).state == "done"
    moved.write_text("丁")
    with pytest.raises(HeptaError, match="another source .*content changed"):
        claim(make(tmp_path, moved), "verb", 1)


def test_a_preset_means_the_preset_whatever_lies_in_the_working_directory(tmp_path, monkeypatch):
    class WithModel(StageConfig):
        model: str = preset_or_path()

    monkeypatch.chdir(tmp_path)
    config = WithModel(model="7b", output=tmp_path / "out")
    claim(config, "pretrain", 1).release()
    (tmp_path / "7b").mkdir()
    (tmp_path / "7b" / "file").write_text("a run that someone named so")
    assert claim(config, "pretrain", 1).inputs["model"] == "7b"


def test_another_version_is_refused(tmp_path, source):
    finished(tmp_path, source)
    with pytest.raises(HeptaError, match="verb version 1, this is verb version 2"):
        claim(make(tmp_path, source), "verb", 2)


def test_foreign_directory_is_left_alone(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(HeptaError, match="not empty and not made by hepta"):
        claim(make(tmp_path, source), "verb", 1)


def test_two_processes_do_not_write_one_output(tmp_path, source):
    first = claim(make(tmp_path, source), "verb", 1)
    with pytest.raises(HeptaError, match="another hepta process"):
        claim(make(tmp_path, source), "verb", 1)
    first._lock.close()


def test_unknown_manifest_format_is_refused(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(HeptaError, match="format 99 is unknown"):
        claim(make(tmp_path, source), "verb", 1)


def test_full_disk_is_one_line_with_exit_1_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_atomic(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage_module.os, "fsync", full)
    with pytest.raises(MachineError, match="No space left") as caught:
        write_atomic(path, "new")
    assert caught.value.exit_code == 1
    assert path.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["file.json"]


def test_wrong_input_leaves_no_claim_behind_but_work_stays(tmp_path, source):
    claim(make(tmp_path, source), "verb", 1)._lock.close()
    withdraw(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    busy = claim(make(tmp_path, source), "verb", 1)
    withdraw(tmp_path / "out")  # another process's claim is not ours to drop
    assert (tmp_path / "out" / ".stage.json").is_file()
    busy._lock.close()
    (tmp_path / "out" / "half").write_text("work")
    withdraw(tmp_path / "out")
    assert (tmp_path / "out" / "half").is_file()


def test_failed_directory_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), atomic_directory(tmp_path / "d") as temporary:
        (temporary / "half").write_text("x")
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_unfinished_stage_is_no_input(tmp_path, source):
    claim(make(tmp_path, source), "verb", 1)
    with pytest.raises(HeptaError, match="was not finished"):
        digest_of(tmp_path / "out")


def test_finished_stage_stands_for_its_digest(tmp_path, source):
    finished(tmp_path, source)
    assert digest_of(tmp_path / "out") == "digest"
    assert read_manifest(tmp_path / "out")["fingerprint"]
