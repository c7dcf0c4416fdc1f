"""Reading conversations: each format, each fault with its row number, splits that twins cannot straddle."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard

from hepta.config import HeptaError
from hepta.data.conversations import Conversation, held_out_prompts, load_conversations, split_conversations

WANTED = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]
GOOD = {"messages": WANTED}


def sharegpt(messages):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[m["role"]], "value": m["content"]} for m in messages]


FORMATS = {
    "messages": GOOD,
    "sharegpt": {"conversations": sharegpt(WANTED)},
    "sharegpt-system": {"system": "Be kind.", "conversations": sharegpt(WANTED[1:])},
    "alpaca": {"instruction": "2+2?", "input": "", "output": "4", "history": [["Hi", "Hello!"]], "system": "Be kind."},
    "prompt-lists": {"prompt": WANTED[:4], "completion": WANTED[4:]},
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_reads_as_the_same_messages(write_rows, name):
    """trap S1: ShareGPT's human and gpt become user and assistant; alpaca's history and system are kept."""
    loaded = load_conversations(write_rows([FORMATS[name], FORMATS[name]]))
    assert [(c.row, c.messages, c.lang, c.source) for c in loaded] == [(n, WANTED, "en", "rows") for n in (1, 2)]


def test_prompt_and_completion_and_alpaca_input_are_joined_as_written(write_rows):
    """trap S1."""
    row = {"prompt": "Say hi", "completion": "hi"}
    assert [m["content"] for m in load_conversations(write_rows([row]))[0].messages] == ["Say hi", "hi"]
    alpaca = {"instruction": "Translate.", "input": "猫", "output": "cat"}
    assert [m["content"] for m in load_conversations(write_rows([alpaca]))[0].messages] == ["Translate.\n猫", "cat"]


def test_tool_turns_and_function_calls_are_kept(write_rows):
    names = ("human", "function_call", "observation", "gpt")
    row = {"conversations": [{"from": name, "value": name} for name in names], "tools": "[]"}
    loaded = load_conversations(write_rows([row]))
    assert [m["role"] for m in loaded[0].messages] == ["user", "assistant", "tool", "assistant"]
    assert loaded.report["unused_columns"] == {"tools": 1}  # nothing silent


def test_unknown_columns_say_what_was_seen_and_expected(write_rows):
    """trap S1."""
    with pytest.raises(
        HeptaError, match=r"row 1: columns 'question', 'answer'; expected messages .* prompt, completion"
    ):
        load_conversations(write_rows([{"question": "a", "answer": "b"}]), "drop")


def bad(*changes, **first):
    messages = [dict(m) for m in WANTED]
    for place, key, value in changes:
        messages[place][key] = value
    return {"messages": messages, **first}


FAULTS = {
    "role typo": (bad((2, "role", "asistant")), "unknown role: 'asistant'; did you mean 'assistant'"),
    "null content": (bad((2, "content", None)), "no content: content is null"),
    "number": (bad((1, "content", 7)), "content is no text: content is a int"),
    "assistant first": ({"messages": WANTED[2:]}, "does not begin with the user: first turn is assistant"),
    "ends with the user": ({"messages": WANTED[:4]}, "does not end with an answer: last turn is user"),
    "system only": ({"messages": WANTED[:1]}, "does not begin with the user"),
    "empty answer": (bad((4, "content", " \n")), "empty answer: message 5"),
    "empty question": (bad((1, "content", "")), "empty turn: message 2"),
    "two questions": (
        {"messages": [WANTED[1], WANTED[1], WANTED[2]]},
        "turns out of order: message 2 is user after user",
    ),
    "another format": (
        {"prompt": "a", "completion": "b"},
        "another format than the file's first row: expected messages",
    ),
    "no messages": ({"messages": []}, "messages is no list of messages: found nothing"),
    "wrong keys": (
        {"messages": [{"from": "human", "value": "x"}]},
        "a message without 'role' and 'content': found 'from', 'value'",
    ),
    "not JSON": ('{"messages": [', "not JSON"),
    "not an object": ("[1]", "not an object: found a list"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_row_is_an_error_or_a_counted_drop_with_its_number(write_rows, name, capsys):
    """trap S2."""
    row, message = FAULTS[name]
    path = write_rows([GOOD, row, GOOD])
    with pytest.raises(HeptaError, match="row 2: ") as caught:
        load_conversations(path, "error")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    loaded = load_conversations(path, "drop")
    assert [c.row for c in loaded] == [1, 3]
    kind = message.partition(":")[0]
    assert loaded.report["dropped"] == {kind: 1}
    assert message in loaded.report["examples"][kind][0]
    assert "row 2" in loaded.report["examples"][kind][0]
    assert loaded.report["rows"] == 3


def test_nothing_left_is_an_error_that_shows_a_reason(write_rows):
    with pytest.raises(HeptaError, match="no conversation left of 1 rows.*row 1"):
        load_conversations(write_rows([{"messages": []}]), "drop")
    with pytest.raises(HeptaError, match="files are empty"):
        load_conversations(write_rows([]), "drop")


def test_all_file_kinds_and_folders_and_names_are_read(tmp_path):
    rows = [GOOD, GOOD]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(lines))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "e.parquet")
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    (tmp_path / "SOURCE.json").write_text("{}", encoding="utf-8")
    loaded = load_conversations(tmp_path)
    assert [(c.source, c.row) for c in loaded] == [(name, row) for name in "abcde" for row in (1, 2)]
    assert all(c.messages == WANTED for c in loaded)
    named = load_conversations([f"mine={tmp_path / 'a.jsonl'}", str(tmp_path / "b.json")])
    assert named.report["sources"] == {"mine": 2, "b": 2}


@pytest.mark.parametrize("name", ["half.jsonl.gz", "binary.json", "object.json", "missing.jsonl", "empty"])
def test_unreadable_input_is_one_clear_line(tmp_path, name):
    path = tmp_path / name
    if name == "half.jsonl.gz":
        path.write_bytes(gzip.compress(json.dumps(GOOD).encode() * 50)[:-20])
    elif name == "binary.json":
        path.write_bytes(bytes(range(256)))
    elif name == "object.json":
        path.write_text("{}", encoding="utf-8")
    elif name == "empty":
        path.mkdir()
    with pytest.raises(HeptaError, match=name) as caught:
        load_conversations(path, "drop")
    assert "\n" not in str(caught.value)


def many(count, lang="en", twin_every=7):
    texts = [
        f"question {i // 2 if i % twin_every == 1 else i}" if lang == "en" else f"第{i}个问题" for i in range(count)
    ]
    return [
        Conversation(i, [{"role": "user", "content": text}, {"role": "assistant", "content": f"answer {i}"}], lang)
        for i, text in enumerate(texts, 1)
    ]


@pytest.mark.parametrize("name", ["rows.xlsx", "rows.txt", "rows"])
def test_a_file_of_another_format_names_the_formats_read(tmp_path, name):
    (tmp_path / name).write_text("question,answer\nhi,there\n")
    with pytest.raises(HeptaError, match=r"no format of conversations; \.jsonl, \.json, \.parquet, \.csv, \.tsv are"):
        load_conversations(tmp_path / name)


def test_twins_of_a_prompt_never_straddle_the_split():
    conversations = many(2000) + many(500, "zh")
    train, held = split_conversations(conversations, 0.1)
    assert not {c.first_prompt for c in train} & {c.first_prompt for c in held}
    assert len(train) + len(held) == 2500
    for lang, count in (("en", 2000), ("zh", 500)):
        share = sum(c.lang == lang for c in held) / count
        assert 0.06 < share < 0.14
    again, _ = split_conversations(conversations[::-1], 0.1)
    assert {c.row for c in again if c.lang == "en"} == {c.row for c in train if c.lang == "en"}


def test_each_language_has_something_held_out_unless_nothing_is_asked_for():
    conversations = many(6) + many(6, "zh")
    assert {c.lang for c in split_conversations(conversations, 0.001)[1]} == {"en", "zh"}
    assert split_conversations(conversations, 0)[1] == []
    prompts = held_out_prompts(conversations, 0.001)
    assert set(prompts) == {"en", "zh"}
    assert prompts["zh"].first_prompt.startswith("第")


def test_real_instruction_sets_load_whole(alpaca_en, alpaca_zh, chat_en, chat_zh):
    loaded = load_conversations([alpaca_en, alpaca_zh, chat_en, chat_zh], "drop")
    assert loaded.report["kept"] > 0.99 * loaded.report["rows"]
    assert loaded.report["languages"]["zh"] > 1200
    assert loaded.report["languages"]["en"] > 2500
