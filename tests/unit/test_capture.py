"""What a run prints becomes lines of its log."""

from hypothesis import given
from hypothesis import strategies as st

from orch_workers.capture import Lines


def test_lines_are_cut_at_newlines_wherever_the_reads_fall() -> None:
    lines = Lines()
    assert lines.feed(b"one\ntw") == ["one"]
    assert lines.feed(b"o\n\nthree") == ["two", ""]
    assert lines.flush() == ["three"]
    assert lines.flush() == []


def test_a_windows_line_end_leaves_no_carriage_return() -> None:
    assert Lines().feed(b"one\r\ntwo\r\n") == ["one", "two"]


def test_a_progress_bar_leaves_only_its_last_state() -> None:
    lines = Lines()
    assert lines.feed(b"\r 10%\r 20%") == []
    assert lines.feed(b"\r100%") == []
    assert lines.feed(b"\n") == ["100%"]


def test_a_carriage_return_at_the_end_of_a_read_starts_the_line_anew() -> None:
    lines = Lines()
    lines.feed(b"old\r")
    assert lines.feed(b"new\n") == ["new"]


def test_a_line_beyond_the_limit_is_cut_and_says_by_how_much() -> None:
    lines = Lines(limit=10)
    for _ in range(5):
        assert lines.feed(b"12345678") == []
    assert lines.feed(b"\nnext\n") == ["1234567812 [cut: 30 more bytes]", "next"]


def test_bytes_that_are_not_utf_8_are_shown_as_replacement_characters() -> None:
    assert Lines().feed(b"\xff ok\n") == ["\ufffd ok"]


@given(st.text(alphabet="ab\u65e5\n", max_size=200), st.lists(st.integers(1, 20), max_size=50))
def test_how_the_bytes_are_split_makes_no_difference(text: str, sizes: list[int]) -> None:
    data = text.encode()
    lines, found = Lines(), []
    for size in sizes:
        found += lines.feed(data[:size])
        data = data[size:]
    found += lines.feed(data) + lines.flush()
    expected = text.split("\n")
    assert found == (expected if expected[-1] else expected[:-1])
