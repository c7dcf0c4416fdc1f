"""Streams: whole characters only, nothing of a stop string, joined equal to the whole (traps G3, G4)."""

from hypothesis import given
from hypothesis import strategies as st

from hepta.generation.text import TextStream


def run(tokens: list[bytes], stops: tuple[str, ...] = ()) -> list[str]:
    """Pieces a stream gives for tokens of these bytes, until it stops or they end."""
    stream, pieces = TextStream(lambda i: tokens[i], stops), []
    for i in range(len(tokens)):
        pieces.append(stream.push(i))
        if stream.stopped:
            return pieces
    return [*pieces, stream.finish()]


def test_a_character_waits_for_its_last_byte() -> None:
    joined = "今👩‍👧é".encode()
    pieces = run([joined[i : i + 1] for i in range(len(joined))])
    assert "".join(pieces) == "今👩‍👧é"
    assert pieces[:4] == ["", "", "今", ""]
    assert all("\ufffd" not in piece for piece in pieces)


def test_invalid_bytes_become_replacement_characters() -> None:
    assert "".join(run([b"ok\xff", b"\xe4", b"x"])) == "ok\ufffd\ufffdx"
    assert "".join(run([b"cut \xe4\xbb"])) == "cut \ufffd"


def test_nothing_of_a_stop_string_leaks() -> None:
    pieces = run([b"Hello\n", b"\nUs", b"er", b": hi"], ("\n\nUser:", "###"))
    assert "".join(pieces) == "Hello"
    assert run([b"a#", b"#b##", b"#c"], ("###",)) == ["a", "##b", ""]
    assert "".join(run([b"a#", b"#"], ("###",))) == "a##"  # what only looked like a stop comes at the end
    assert "".join(run(["再见。".encode()[i : i + 1] for i in range(9)], ("见",))) == "再"


@given(st.lists(st.binary(max_size=5), max_size=12), st.lists(st.text("ab#今", min_size=1, max_size=4), max_size=3))
def test_pieces_join_to_the_text_before_the_first_stop(tokens: list[bytes], stops: list[str]) -> None:
    whole = b"".join(tokens).decode("utf-8", "replace")
    cuts = [at for stop in stops if (at := whole.find(stop)) >= 0]
    got = "".join(run(tokens, tuple(stops)))
    # the earliest stop; a shorter stop may complete first inside a longer one that began earlier
    assert whole.startswith(got)
    assert (got == whole) == (not cuts)
    assert not any(stop in got for stop in stops)


@given(st.text("ab#今é", max_size=30), st.text("ab#今", min_size=1, max_size=4), st.integers(1, 4))
def test_one_stop_cuts_exactly_there_however_tokens_split(text: str, stop: str, width: int) -> None:
    raw = text.encode()
    tokens = [raw[i : i + width] for i in range(0, len(raw), width)]
    assert "".join(run(tokens, (stop,))) == text.split(stop)[0]
