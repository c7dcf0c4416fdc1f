"""From the bytes inside a package to rows: one small generator per shape of data."""

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml

Row = dict[str, Any]
Files = dict[str, bytes]  # path inside the package → content

ALTERNATIVES = {"computers", "emotion"}  # first line a question, each further line one more answer to it
DIALOGUES = {"conversations", "health"}  # lines alternate between two speakers and belong together
_QUIZ = re.compile(r"^(?P<question>.+\?)\s*-\s*'?(?P<answer>.+?)'?$", re.DOTALL)


def _only(files: Files) -> bytes:
    return next(iter(files.values()))


def json_list(files: Files) -> Iterator[Row]:
    """A JSON array of objects, as it stands."""
    yield from json.loads(_only(files))


def json_lines(files: Files) -> Iterator[Row]:
    """A JSON object per line, as it stands."""
    for line in _only(files).decode("utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def lines(files: Files) -> Iterator[Row]:
    """A document per line of plain text."""
    for line in _only(files).decode("utf-8").split("\n"):
        if line.strip():
            yield {"text": line}


def wiki_leads(files: Files) -> Iterator[Row]:
    """Title → {title, extract, description, topic}; the extract becomes ``text``."""
    for key, value in json.loads(_only(files)).items():
        yield {"id": key, "text": value["extract"], **{k: value.get(k) for k in ("title", "description", "topic")}}


def topics(files: Files) -> Iterator[Row]:
    """Wikipedia leads that have a topic, as text and label."""
    for row in wiki_leads(files):
        if row["topic"] and row["topic"] != "Uncategorized":
            yield {"id": row["id"], "text": row["text"], "label": row["topic"]}


def arc_questions(files: Files) -> Iterator[Row]:
    """The AI2 Reasoning Challenge as an Arrow stream: choices in order, the answer by its number from 0."""
    import pyarrow.ipc as ipc

    for row in ipc.open_stream(_only(files)).read_all().to_pylist():
        answer = row["choices"]["label"].index(row["answerKey"])
        yield {"id": row["id"], "question": row["question"], "choices": row["choices"]["text"], "answer": answer}


def chapters(files: Files) -> Iterator[Row]:
    """A JSON array of texts whose first line is the chapter's title."""
    for number, text in enumerate(json.loads(_only(files)), 1):
        title = text.strip().split("\n", 1)[0].strip()
        yield {"id": number, "title": title, "text": text}


def sentence_pairs(files: Files) -> Iterator[Row]:
    """Chinese sentences (simplified and traditional) with their English translations."""
    for row in json.loads(_only(files)):
        yield {
            "id": row["id"], "zh": row["chinese"], "zh_hant": row["traditional"],
            "en": row["translation"]["en"], "level": row["hsk_level"], "topic": row["topic"],
        }  # fmt: skip


def sentence_groups(files: Files) -> Iterator[Row]:
    """Everyday Chinese sentences, up to twenty of one level and topic to a document."""
    groups: dict[tuple[int, str], list[str]] = {}
    for row in json.loads(_only(files)):
        groups.setdefault((row["hsk_level"], row["topic"]), []).append(row["chinese"])
    for (level, topic), sentences in sorted(groups.items()):
        for start in range(0, len(sentences), 20):
            part = sentences[start : start + 20]
            yield {"id": f"{level}-{topic}-{start // 20}", "text": "\n".join(part), "level": level, "topic": topic}


def tagged_words(files: Files) -> Iterator[Row]:
    """Tab-separated word and BIO tag per line, an empty word between sentences."""
    tokens: list[str] = []
    tags: list[str] = []
    for line in [*_only(files).decode("utf-8").split("\n"), ""]:
        word, _, tag = line.rstrip("\r").partition("\t")
        if word.strip() and tag:
            tokens.append(word)
            tags.append(tag)
        elif tokens:
            yield {"tokens": tokens, "tags": tags}
            tokens, tags = [], []


def reviews(files: Files) -> Iterator[Row]:
    """A review per line of ``pos.txt`` and ``neg.txt``, labelled by its file; repeated lines stay."""
    for path, data in files.items():
        label = {"pos": "positive", "neg": "negative"}[PurePosixPath(path).stem]
        for line in data.decode("utf-8").split("\n"):
            if line.strip():
                yield {"text": line.strip(), "label": label}


def exchanges(files: Files) -> Iterator[Row]:
    """YAML lists of lines → one row per exchange: ``messages`` that begin with user and end with assistant."""
    for path, data in files.items():
        topic = PurePosixPath(path).stem
        for spoken in yaml.safe_load(data)["conversations"]:
            for turns in _exchanges_of(topic, [str(line).strip() for line in spoken]):
                roles = ("user", "assistant")
                messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
                yield {"messages": messages, "topic": topic}


def _exchanges_of(topic: str, spoken: list[str]) -> Iterator[list[str]]:
    quiz = [_QUIZ.match(line) for line in spoken]
    if len(spoken) > 2 and all(quiz):  # "question? - 'answer'" on each line
        yield from ([found["question"], found["answer"]] for found in quiz if found)
    elif topic in ALTERNATIVES:
        yield from ([spoken[0], answer] for answer in spoken[1:] if answer)
    elif topic in DIALOGUES:
        turns = spoken[: len(spoken) // 2 * 2]  # an answer is always last
        if all(turns) and turns:
            yield turns
    else:
        yield from ([q, a] for q, a in zip(spoken[::2], spoken[1::2], strict=False) if q and a)
