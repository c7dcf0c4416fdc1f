"""The order of data: every token once an epoch, any sequence by its number, sources mixed and shuffled."""

import math

import numpy as np
import pytest

from hepta.config import HeptaError
from hepta.data.order import IGNORE, TokenOrder, restarted_positions
from hepta.data.permutation import permute, shuffled
from hepta.data.shards import open_streams

T = 16
LENGTHS = [T, T - 1, T + 1, 1, 2, 3 * T, 3 * T + 1, 5, 4, 2 * T - 1, 7, T, 3]


@pytest.fixture(scope="module")
def tokens(shard_maker, tmp_path_factory):
    return shard_maker(tmp_path_factory.mktemp("shards") / "t", {"en": LENGTHS, "zh": [9, 40, T, 2], "zh-b": [5]})


def expected(directory, document_mask):
    """Token → its label by the rules, from the documents themselves."""
    labels = {}
    for stream in open_streams(directory, "train"):
        ids = stream.read(0, stream.total)
        for place, token in enumerate(ids.tolist()):
            last = place + 1 in stream.ends if document_mask else place + 1 == stream.total
            labels[token] = IGNORE if last else int(ids[place + 1])
    return labels


@pytest.mark.parametrize("document_mask", [True, False])
@pytest.mark.parametrize("length", [T, T - 1, 5, 1000])
def test_every_token_is_read_once_an_epoch_with_its_right_label(tokens, length, document_mask):
    """trap K7: documents longer than T, ending at T and at T ± 1; the waste is a metric and it is right."""
    order = TokenOrder(tokens, "train", length, seed=3, document_mask=document_mask)
    wanted = expected(tokens, document_mask)
    for epoch in (0, 2):
        seen: dict[int, int] = {}
        padded = supervised = 0
        for n in range(epoch * order.sequences_per_epoch, (epoch + 1) * order.sequences_per_epoch):
            sequence = order.get(n)
            real = sequence.segment_ids < len(order.languages(n))
            padded += int((~real).sum())
            assert (sequence.labels[~real] == IGNORE).all()
            supervised += int((sequence.labels != IGNORE).sum())
            for token, label in zip(sequence.input_ids[real].tolist(), sequence.labels[real].tolist(), strict=True):
                assert token not in seen
                seen[token] = label
        assert seen == wanted
        total = sum(LENGTHS) + 9 + 40 + T + 2 + 5
        assert order.waste == {
            "windows": order.sequences_per_epoch, "tokens": total, "padded": padded, "cropped": 0,
            "masked": total - supervised, "supervised": supervised,
        }  # fmt: skip


def test_segments_are_documents_and_positions_restart_in_each(tokens):
    """trap S10's ground: a token's segment is its document in this window, counted from 0."""
    order = TokenOrder(tokens, "train", T, seed=1)
    document_of = {}
    for stream in open_streams(tokens, "train"):
        owner = np.searchsorted(stream.ends, np.arange(stream.total), side="right")
        document_of |= {
            t: f"{stream.name}/{stream.documents[0][d]}"
            for t, d in zip(stream.read(0, stream.total).tolist(), owner, strict=True)
        }
    for n in range(order.sequences_per_epoch):
        sequence, names = order.get(n), order.where(n)
        assert (np.diff(sequence.segment_ids) >= 0).all()
        assert sequence.segment_ids[0] == 0
        for segment in range(int(sequence.segment_ids.max()) + 1):
            here = sequence.segment_ids == segment
            assert sequence.positions[here].tolist() == list(range(int(here.sum())))
            if segment < len(names):
                assert {document_of[t] for t in sequence.input_ids[here].tolist()} == {names[segment]}
        assert [name.startswith("zh") for name in names] == [lang == "zh" for lang in order.languages(n)]


def test_without_a_document_mask_a_window_is_one_segment(tokens):
    order = TokenOrder(tokens, "train", T, document_mask=False)
    full = [order.get(n) for n in range(order.sequences_per_epoch)]
    assert any((s.segment_ids == 0).all() and (s.labels != IGNORE).all() for s in full)
    assert all(s.positions[0] == 0 for s in full)


def test_boundaries_come_from_the_index_and_not_from_an_end_token(shard_maker, tmp_path):
    """trap K6: id 0 is the end token of these shards, and it stands inside documents too."""
    directory = shard_maker(tmp_path / "t", {"en": [20, 20]}, shards=1)
    shard = directory / "train/source=en/shard-00000.bin"
    np.zeros(40, dtype="<u2").tofile(shard)
    sequence = TokenOrder(directory, "train", 40).get(0)
    assert sequence.segment_ids.tolist() == [0] * 20 + [1] * 20
    assert np.flatnonzero(sequence.labels == IGNORE).tolist() == [19, 39]


def test_a_sequence_depends_on_its_number_alone(tokens):
    """Resume is exact, whatever was read before and however batches are cut."""
    one, other = TokenOrder(tokens, "train", T, seed=7), TokenOrder(tokens, "train", T, seed=7)
    far = [other.get(n) for n in reversed(range(90))][::-1]
    for start, count in ((0, 5), (5, 1), (33, 20), (80, 10)):
        batch = one.batch(start, count)
        for name in ("input_ids", "labels", "segment_ids", "positions"):
            assert batch[name].shape == (count, T)
            assert batch[name].dtype == np.int64
            assert (batch[name] == np.stack([getattr(s, name) for s in far[start : start + count]])).all()
    assert one.digest == other.digest


def test_epochs_and_seeds_give_other_orders(tokens):
    order = TokenOrder(tokens, "train", T, seed=7)
    epochs = [
        [order.get(e * order.sequences_per_epoch + n).input_ids.tobytes() for n in range(order.sequences_per_epoch)]
        for e in range(3)
    ]
    assert epochs[0] != epochs[1] != epochs[2]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    digests = {
        TokenOrder(tokens, "train", *args, **more).digest
        for args, more in (
            ((T, 7), {}),
            ((T, 8), {}),
            ((T + 1, 7), {}),
            ((T, 7), {"document_mask": False}),
            ((T, 7), {"mix": {"en": 1, "zh": 1, "zh-b": 0}}),
        )
    }
    assert len(digests) == 5


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000])
def test_the_keyed_permutation_is_a_bijection(count):
    for key in (0, 1, 2**64 - 1):
        assert sorted(permute(place, count, key) for place in range(count)) == list(range(count))
        assert sorted(shuffled(count, key).tolist()) == list(range(count))


def autocorrelation(values, lag):
    centred = np.asarray(values, float) - np.mean(values)
    return float((centred[:-lag] * centred[lag:]).sum() / (centred**2).sum())


def test_the_shuffle_leaves_no_trace_of_sources_or_places(shard_maker, tmp_path):
    """trap K10: autocorrelation of source ids, and of window numbers within a source, lies within ±3/√n."""
    directory = shard_maker(tmp_path / "t", {"en": [30_000], "zh": [10_000]}, shards=1)
    order = TokenOrder(directory, "train", 10, seed=5, document_mask=False)
    found = [order._find(n) for n in range(order.sequences_per_epoch)]
    sources = [stream.name == "zh" for stream, _ in found]
    windows = [window for stream, window in found if stream.name == "en"]
    for values in (sources, windows):
        bound = 3 / math.sqrt(len(values))
        assert max(abs(autocorrelation(values, lag)) for lag in range(1, 9)) < bound


def test_sources_follow_their_share_of_tokens_by_the_block(shard_maker, tmp_path):
    directory = shard_maker(tmp_path / "t", {"a": [31_000], "b": [9_000], "c": [100]}, shards=1)
    order = TokenOrder(directory, "train", 5, seed=5)
    names = [order._find(n)[0].name for n in range(order.sequences_per_epoch)]
    assert [names.count(name) for name in "abc"] == [6200, 1800, 20]
    for block in range(1, 8):
        taken = names[: block * 1024]
        for name, windows in (("a", 6200), ("b", 1800), ("c", 20)):
            assert abs(taken.count(name) - windows / 8020 * len(taken)) <= 1


def test_a_mix_weights_sources_and_repeats_the_small_one(shard_maker, tmp_path):
    directory = shard_maker(tmp_path / "t", {"big": [3000], "small": [300]}, shards=1)
    order = TokenOrder(directory, "train", 10, seed=5, mix={"big": 0.5, "small": 0.5})
    found = [order._find(n) for n in range(2 * order.sequences_per_epoch)]
    small = [window for stream, window in found if stream.name == "small"]
    assert len(small) == order.sequences_per_epoch == 330
    assert {window: small.count(window) for window in small} == dict.fromkeys(range(30), 11)
    big = [window for stream, window in found if stream.name == "big"]
    assert sorted(big[:300]) == list(range(300))  # every window once before any twice, over epochs too


@pytest.mark.parametrize(
    "mix", [{"en": 1}, {"en": 1, "zh": 1, "zh-b": -1}, {"en": 0, "zh": 0, "zh-b": 0}, {"en": 1, "zh": 1, "de": 1}]
)
def test_a_mix_that_does_not_fit_names_the_sources(tokens, mix):
    with pytest.raises(HeptaError, match="en, zh, zh-b"):
        TokenOrder(tokens, "train", T, mix=mix)


def test_missing_shards_and_empty_splits_are_one_clear_line(tokens, tmp_path):
    with pytest.raises(HeptaError, match="no token shards there"):
        TokenOrder(tmp_path / "nothing")
    with pytest.raises(HeptaError, match="holds no tokens"):
        TokenOrder(tokens, "val")
    with pytest.raises(HeptaError, match="split 'dev' is unknown"):
        TokenOrder(tokens, "dev")


def test_ids_beyond_16_bits_are_read_as_they_are(shard_maker, tmp_path):
    """trap K5."""
    directory = shard_maker(tmp_path / "t", {"en": [70_000]}, shards=1, dtype="<u4")
    order = TokenOrder(directory, "train", 70_000)
    assert order.get(0).input_ids[-1] == 69_999


def test_positions_restart_where_the_segment_changes():
    assert restarted_positions(np.array([0, 0, 0, 1, 2, 2])).tolist() == [0, 1, 2, 0, 0, 1]
