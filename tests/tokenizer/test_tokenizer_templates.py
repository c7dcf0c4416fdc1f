"""Conversations: ids of apply_chat_template, content that cannot spell structure, masks that end with a stop token."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepta.config import HeptaError
from hepta.tokenizer.load import Tokenizer, load_tokenizer
from hepta.tokenizer.template import HistoryChanged
from hepta.tokenizer.train import SPECIALS

CHAT = [
    {"role": "system", "content": "你是一个助手。"},
    {"role": "user", "content": "Hi!\n\n"},
    {"role": "assistant", "content": "\n\n  Hello  there"},
    {"role": "user", "content": "2 + 2？"},
    {"role": "assistant", "content": "4。"},
    {"role": "tool", "content": "{\"sum\": 4}"},
    {"role": "assistant", "content": "- four\n- 四"},
]  # fmt: skip
NO_TRIM = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last and '</think>' in m['content'] %}"
    "{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + NO_TRIM
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda t: not any(s in t for s in SPECIALS)
)
nasty = st.lists(
    st.sampled_from([*SPECIALS, "<|im_", "end|>", "\n", " ", "assistant", "x", "好", "<"]), max_size=8
).map("".join)


def chats(content):
    turns = st.lists(st.tuples(content, content), min_size=1, max_size=3)

    def build(system, pairs):
        messages = [{"role": "system", "content": system}] if system else []
        for question, answer in pairs:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return messages

    return st.builds(build, st.one_of(st.just(""), content), turns)


def with_template(tokenizer: Tokenizer, directory: Path, template: str) -> Tokenizer:
    """The same tokenizer with another chat template."""
    tokenizer.copy_to(directory)
    file = directory / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "chat_template": template}), encoding="utf-8")
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def untrimmed(tokenizer, tmp_path_factory):
    """A foreign template that does not trim content, so that a newline may merge over the turn's edge."""
    return with_template(tokenizer, tmp_path_factory.mktemp("untrimmed"), NO_TRIM)


def reference_ids(auto, messages, add_generation_prompt=False):
    return auto.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=True)["input_ids"]


@settings(max_examples=200, deadline=None)
@given(messages=chats(plain), prompt=st.booleans())
def test_ids_are_those_of_apply_chat_template(tokenizer, auto, messages, prompt):
    assert tokenizer.render(messages, prompt) == reference_ids(auto, messages, prompt)
    assert tokenizer.render(messages[:-1], prompt) == reference_ids(auto, messages[:-1], prompt)


def test_ids_of_a_whole_chat_with_system_and_tool_are_golden(tokenizer, auto):
    """trap S3: structure by id, content by text; supervised are the answers with their stop tokens, nothing else."""
    start, end = tokenizer.size - 2, tokenizer.size - 1
    ids, mask, answers = [], [], []
    for message in CHAT:
        answer = message["role"] == "assistant"
        content = tokenizer.encode(message["content"].strip())
        head, tail = tokenizer.encode(message["role"] + "\n"), tokenizer.encode("\n")
        ids += [start, *head, *content, end, *tail]
        mask += [False] * (1 + len(head)) + [answer] * (len(content) + 1) + [False] * len(tail)
        answers += [message["content"].strip() + "<|im_end|>"] if answer else []
    assert tokenizer.render_supervised(CHAT) == (ids, mask)
    assert tokenizer.render(CHAT) == ids == reference_ids(auto, CHAT)
    last_ids, last_mask = tokenizer.render_supervised(CHAT, last_only=True)
    assert last_ids == ids
    supervised = tokenizer.decode([i for i, on in zip(ids, last_mask, strict=True) if on], skip_special=False)
    assert supervised == answers[-1]  # earlier stop tokens are masked too


def test_no_system_prompt_and_no_bos_appear_by_themselves(tokenizer):
    """trap S6, and nothing said that nobody wrote."""
    ids = tokenizer.render([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_writes_bos_gives_exactly_one(tokenizer, tmp_path):
    """trap S6."""
    ids = with_template(tokenizer, tmp_path, WITH_BOS).render(CHAT)
    assert ids.count(tokenizer.bos_id) == 1 == ids.index(tokenizer.bos_id) + 1


@settings(max_examples=200, deadline=None)
@given(messages=chats(st.one_of(plain, nasty)))
def test_content_cannot_spell_structure(tokenizer, untrimmed, messages):
    """trap K3: exactly the template's specials, whatever the content; and the content comes back."""
    for which in (tokenizer, untrimmed):
        ids, mask = which.render_supervised(messages)
        assert which.render(messages) == ids
        start, end = which.size - 2, which.size - 1
        assert [i for i in ids if i in which.special_ids] == [start, end] * len(messages)
        wanted = [
            m["content"].strip() if which is tokenizer else m["content"] for m in messages if m["role"] == "assistant"
        ]
        supervised = [i for i, on in zip(ids, mask, strict=True) if on]
        assert which.decode(supervised, skip_special=False) == "".join(f"{text}<|im_end|>" for text in wanted)


@settings(max_examples=200, deadline=None)
@given(messages=chats(st.one_of(plain, nasty)))
def test_a_prompt_is_a_prefix_of_the_conversation_and_the_mask_begins_there(tokenizer, untrimmed, messages):
    """traps S7, S8: also where the answer begins with a newline that BPE would merge with the turn's own."""
    for which in (tokenizer, untrimmed):
        ids, mask = which.render_supervised(messages)
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = which.render(messages[:index], add_generation_prompt=True)
                assert ids[: len(prompt)] == prompt
                assert mask[len(prompt)]
                assert not mask[len(prompt) - 1]


@settings(max_examples=100, deadline=None)
@given(messages=chats(plain))
def test_the_last_supervised_token_of_each_answer_is_the_stop_token(tokenizer, messages):
    """trap S4."""
    ids, mask = tokenizer.render_supervised(messages)
    ends = [i for i, on, after in zip(ids, mask, [*mask[1:], False], strict=True) if on and not after]
    assert ends == [tokenizer.stop_ids[0]] * (len(messages) // 2)


def test_a_template_that_rewrites_history_is_detected_and_rendered_per_answer(tokenizer, tmp_path):
    """trap S16: a reasoning template strips earlier thoughts, so one text cannot train all answers."""
    thinking = with_template(tokenizer, tmp_path, THINKING)
    messages = [
        {"role": "user", "content": "2+2"}, {"role": "assistant", "content": "<think>easy</think>4"},
        {"role": "user", "content": "3+3"}, {"role": "assistant", "content": "<think>hm</think>6"},
    ]  # fmt: skip
    with pytest.raises(HistoryChanged, match="rewrites turn 2"):
        thinking.render_supervised(messages)
    turns = thinking.render_turns(messages)
    assert len(turns) == 2
    for (ids, mask), count, text in zip(turns, (2, 4), ("<think>easy</think>4", "<think>hm</think>6"), strict=True):
        assert ids == thinking.render(messages[:count])
        supervised = [i for i, on in zip(ids, mask, strict=True) if on]
        assert thinking.decode(supervised, skip_special=False) == text + "<|im_end|>"
    assert len(tokenizer.render_turns(messages)) == 1


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}", "not valid Jinja"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "refuses"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "without a stop token"),
        (None, "no chat template"),
    ],
)
def test_a_bad_template_is_one_clear_line(tokenizer, tmp_path, template, message):
    """A template is somebody's program: it runs in Jinja's sandbox; one that never stops the model is refused."""
    with pytest.raises(HeptaError, match=message):
        with_template(tokenizer, tmp_path, template).render_supervised(CHAT)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one"),
        ([{"role": "asistant", "content": "x"}], "did you mean 'assistant'"),
        ([{"role": "user", "content": None}], "must be text"),
        ([{"role": "user", "content": 3}], "must be text"),
        (["hello"], "message 1"),
    ],
)
def test_a_wrong_message_is_named(tokenizer, messages, message):
    with pytest.raises(HeptaError, match=message):
        tokenizer.render(messages)


def test_the_contract_names_tokenizer_and_template(tokenizer, untrimmed):
    """trap S17: a cache keyed by the contract cannot serve another template's ids."""
    ours, other = tokenizer.contract, untrimmed.contract
    assert ours["tokenizer_sha256"] == other["tokenizer_sha256"]
    assert ours["template_sha256"] != other["template_sha256"]
