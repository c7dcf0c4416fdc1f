"""Packed conversations: the same supervised tokens packed or not, stop tokens always there, held-out rows apart."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepta.config import HeptaError
from hepta.data.conversations import Conversation, split_conversations
from hepta.data.order import IGNORE
from hepta.data.sft import SftOrder, pack
from hepta.tokenizer.load import load_tokenizer

T = 96


def chat(row, *contents, lang="en"):
    roles = ("user", "assistant")
    return Conversation(row, [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)], lang, "rows")


@pytest.fixture(scope="module")
def conversations():
    chats = [chat(i, f"What is {i} plus {i}?", f"It is {2 * i}." * (1 + i % 5)) for i in range(1, 40)]
    chats += [chat(i, f"{i}加{i}等于几？", f"等于{2 * i}。", "谢谢", "不客气！", lang="zh") for i in range(40, 60)]
    return chats


def order_of(conversations, tokenizer, **options):
    return SftOrder(conversations, tokenizer, **{"sequence_length": T, "validation": 0.1, "seed": 3, **options})


def segments(order, epoch=0):
    """(name, lang, ids, labels, positions) of each segment of an epoch."""
    size = order.sequences_per_epoch
    for n in range(epoch * size, (epoch + 1) * size):
        sequence = order.get(n)
        for segment, (name, lang) in enumerate(zip(order.where(n), order.languages(n), strict=True)):
            here = sequence.segment_ids == segment
            yield name, lang, sequence.input_ids[here], sequence.labels[here], sequence.positions[here]


def test_supervised_tokens_are_the_same_packed_or_not(conversations, tokenizer):
    """trap S3: the count is the mask's, under packing, without it, and in evaluation batches."""
    train, _ = split_conversations(conversations, 0.1)
    wanted = sum(sum(tokenizer.render_supervised(c.messages)[1]) for c in train)
    for packing in (True, False):
        order = order_of(train, tokenizer, packing=packing, validation=0)
        batch = order.batch(0, order.sequences_per_epoch)
        assert (batch["labels"] != IGNORE).sum() == wanted == order.report["supervised_tokens"]
        assert batch["input_ids"].shape == batch["positions"].shape == (order.sequences_per_epoch, T)
    packed, alone = (order_of(train, tokenizer, packing=p) for p in (True, False))
    assert packed.sequences_per_epoch < 0.75 * alone.sequences_per_epoch
    assert packed.report["filled"] > 0.8 > 0.6 > alone.report["filled"]


def test_every_conversation_is_read_once_an_epoch_in_its_own_segment(conversations, tokenizer):
    """trap S10: ids of a segment are one conversation's, its positions begin at 0, its last label is nobody's first."""
    order = order_of(conversations, tokenizer)
    rendered = {f"rows row {c.row}": (*tokenizer.render_supervised(c.messages), c.lang) for c in conversations}
    for epoch in (0, 3):
        names = Counter()
        for name, lang, ids, labels, positions in segments(order, epoch):
            full, mask, language = rendered[name]
            names[name] += 1
            assert ids.tolist() == full[: len(ids)]
            assert not any(mask[len(ids) :])  # only what follows the last stop token is left off
            assert labels[-1] == IGNORE
            assert [i for i in labels.tolist() if i != IGNORE] == [i for i, on in zip(full, mask, strict=True) if on]
            assert positions.tolist() == list(range(len(ids)))
            assert lang == language
        train, _ = split_conversations(conversations, 0.1)
        assert names == Counter(f"rows row {c.row}" for c in train)


def test_the_last_label_of_every_answer_is_the_stop_token(conversations, tokenizer):
    """trap S4."""
    for _, _, _, labels, _ in segments(order_of(conversations, tokenizer)):
        ends = [
            a
            for a, b in zip(labels.tolist(), [*labels[1:].tolist(), IGNORE], strict=True)
            if a != IGNORE and b == IGNORE
        ]
        assert ends
        assert set(ends) == {tokenizer.stop_ids[0]}


def test_stop_tokens_are_supervised_where_padding_is_the_same_token(conversations, tokenizer, tmp_path):
    """trap S5: labels are masked by length, never by id."""
    tokenizer.copy_to(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    file.write_text(json.dumps(config), encoding="utf-8")
    same = load_tokenizer(tmp_path)
    assert same.pad_id == same.eos_id == same.stop_ids[0]
    order = order_of(conversations, same, packing=False, validation=0)
    labels = order.batch(0, order.sequences_per_epoch)["labels"]
    assert (labels == same.pad_id).sum() == sum(len(c.messages) // 2 for c in conversations)


def test_loss_on_the_last_answer_masks_earlier_stop_tokens_too(conversations, tokenizer):
    """trap S3."""
    order = order_of(conversations, tokenizer, loss_on="last")
    for _, _, _, labels, _ in segments(order):
        assert (labels == tokenizer.stop_ids[0]).sum() == 1


def long_chats():
    filler = "The cat sat on the mat. " * 3
    return [
        chat(1, "short", "answer"),
        chat(2, "old " + filler, "old answer", "new question", "new answer"),
        chat(3, "begin " + filler * 9 + "the end?", "kept answer"),
        chat(4, "question", filler * 9),
    ]


def supervised_texts(order, tokenizer):
    found = {}
    for name, _, ids, labels, _ in segments(order):
        answers = tokenizer.decode([i for i in labels.tolist() if i != IGNORE], skip_special=False)
        found.setdefault(name, []).append((tokenizer.decode(ids.tolist(), skip_special=False), answers))
    return found


@pytest.mark.parametrize("overlong", ["drop", "split", "keep-answer"])
def test_overlong_conversations_never_lose_their_stop_token_and_are_counted(tokenizer, overlong):
    """trap S9."""
    order = order_of(long_chats(), tokenizer, sequence_length=48, validation=0, overlong=overlong)
    found = supervised_texts(order, tokenizer)
    assert found["rows row 1"][0][1] == "answer<|im_end|>"
    assert "rows row 4" not in found  # an answer that does not fit is never cut
    for pieces in found.values():
        assert all(answers.endswith("<|im_end|>") for _, answers in pieces)
    if overlong == "drop":
        assert set(found) == {"rows row 1"}
        assert order.report["overlong"] == {"dropped": 3}
    elif overlong == "split":
        assert {answers for _, answers in found["rows row 2"]} == {"old answer<|im_end|>", "new answer<|im_end|>"}
        assert order.report["overlong"] == {"split": 1, "dropped": 2, "exchanges dropped": 2}
    else:
        ((text, answers),) = found["rows row 2"]
        assert answers == "new answer<|im_end|>"
        assert "old" not in text
        ((text, answers),) = found["rows row 3"]
        assert answers == "kept answer<|im_end|>"
        assert "the end?" in text
        assert "begin" not in text
        assert order.report["overlong"] == {"cut": 2, "dropped": 1}
    assert len(order.report["overlong_examples"]) == 3


def test_overlong_error_names_the_row(tokenizer):
    """trap S9."""
    with pytest.raises(HeptaError, match="rows row 2: .* tokens, sequence_length is 48"):
        order_of(long_chats(), tokenizer, sequence_length=48, validation=0, overlong="error")


def test_nothing_that_fits_is_one_clear_line(tokenizer):
    with pytest.raises(HeptaError, match="none of 4 conversations fits 8 tokens"):
        order_of(long_chats(), tokenizer, sequence_length=8, validation=0)


def test_held_out_conversations_are_never_read_in_training(conversations, tokenizer):
    train, val = (order_of(conversations, tokenizer, split=split) for split in ("train", "val"))
    read, held = ({name for name, *_ in segments(order)} for order in (train, val))
    assert not read & held
    assert read | held == {f"rows row {c.row}" for c in conversations}
    assert held == {f"rows row {c.row}" for c in train.held_out()}
    assert {lang: c.lang for lang, c in train.held_out_prompts().items()} == {"en": "en", "zh": "zh"}


def test_a_sequence_depends_on_its_number_alone(conversations, tokenizer):
    one, other = (order_of(conversations, tokenizer) for _ in range(2))
    assert one.digest == other.digest
    wanted = one.batch(0, 40)
    for n in reversed(range(40)):
        assert (other.batch(n, 1)["input_ids"][0] == wanted["input_ids"][n]).all()
    size = one.sequences_per_epoch
    first, second = ([one.where(e * size + n) for n in range(size)] for e in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_the_digest_holds_template_tokenizer_and_options(conversations, tokenizer, tmp_path):
    """trap S17: another template is another order, even where it renders the same ids."""
    tokenizer.copy_to(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["chat_template"] = "{# another #}" + config["chat_template"]
    file.write_text(json.dumps(config), encoding="utf-8")
    orders = [
        order_of(conversations, tokenizer),
        order_of(conversations, load_tokenizer(tmp_path)),
        order_of(conversations, tokenizer, seed=4),
        order_of(conversations, tokenizer, packing=False),
        order_of(conversations, tokenizer, loss_on="last"),
    ]
    assert (orders[0].batch(0, 9)["input_ids"] == orders[1].batch(0, 9)["input_ids"]).all()
    assert len({order.digest for order in orders}) == 5


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=60))
def test_packing_puts_each_item_in_one_bin_that_holds_it(lengths):
    bins = pack(lengths, 50)
    assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in members) <= 50 for members in bins)
    fullness = sorted(sum(lengths[i] for i in members) for members in bins)
    assert len(bins) < 2 or fullness[0] + fullness[1] > 50  # two bins that fit into one would have been one
    assert bins == pack(list(lengths), 50)


def test_padding_is_a_segment_of_its_own_that_nothing_learns_from(conversations, tokenizer):
    order = order_of(conversations, tokenizer, packing=False)
    sequence = order.get(0)
    padding = sequence.segment_ids == 1
    assert padding.any()
    assert (sequence.input_ids[padding] == tokenizer.pad_id).all()
    assert (sequence.labels[padding] == IGNORE).all()
    assert (np.diff(sequence.segment_ids) >= 0).all()
