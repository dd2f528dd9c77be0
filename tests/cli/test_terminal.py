"""The pieces of the live display."""

import io
import math

import pytest

from kfac_lab.cli.terminal import (
    LiveLines,
    bar,
    chart,
    clip,
    duration,
    number,
    paint,
    table,
    ticks,
    visible,
)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_lines_are_drawn_over_the_last_ones(terminal: Terminal) -> None:
    live = LiveLines(terminal)
    live.draw(["one", "two"])
    live.draw(["three", "four"])
    live.say("stays")
    text = terminal.getvalue()
    assert text.count("\x1b[2A") == 2 and text.endswith("\x1b[Jstays\n")


def test_it_is_due_ten_times_a_second_at_most(terminal: Terminal, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    live, drawn = LiveLines(terminal), 0
    for step in range(1000):  # two seconds
        now[0] = 100 + step / 500
        if live.due():
            live.draw(["x"])
            drawn += 1
    assert 19 <= drawn <= 20


def test_no_line_is_wider_than_the_terminal(terminal: Terminal) -> None:
    LiveLines(terminal).draw([paint("λ" * 200, 33)])
    drawn = terminal.getvalue().replace("\x1b[K", "").replace("\x1b[J", "").rstrip("\n")
    assert visible(drawn) == 59 and drawn.endswith("\x1b[0m")
    assert clip("plain", 3).startswith("pla")


def test_elsewhere_it_writes_plain_ascii_lines_where_it_must() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    live = LiveLines(stream)
    live.draw(["never"], plain=paint("λ 1 → 2 █", 33))
    stream.flush()
    assert stream.buffer.getvalue() == b"lambda 1 -> 2 #\n"


def test_no_color_is_respected(terminal: Terminal, monkeypatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    LiveLines(terminal).say(paint("grey", 33, bold=True))
    assert terminal.getvalue() == "grey\n"


def test_the_cursor_comes_back_whatever_happens(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), LiveLines(terminal):
        raise KeyboardInterrupt
    assert terminal.getvalue() == "\x1b[?25l\x1b[?25h"


def test_bars() -> None:
    assert bar(0, 4) == "░░░░" and bar(1, 4) == "████" and bar(0.5, 4) == "██░░"
    assert bar(7, 4) == "████" and bar(math.nan, 4) == "░░░░"
    assert bar(0.5, 4, unicode=False) == "##.."
    assert all(len(bar(i / 97, 13)) == 13 for i in range(98))


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (245, "4:05"), (3723, "1:02:03")],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told
    assert duration(math.nan) == duration(math.inf) == "?"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0, "0"), (1.23456, "1.23"), (0.00123, "0.00123"), (12345.6, "12346"), (1e-5, "1.0e-05"),
        (2.5e6, "2.5e+06"), (math.nan, "-"), (math.inf, "inf"), (-3.14159, "-3.14"),
    ],
)  # fmt: skip
def test_numbers(value: float, told: str) -> None:
    assert number(value) == told


def test_tables_are_aligned_by_what_is_seen() -> None:
    lines = table([["a", "1"], [paint("long", 33), "22.5"]])
    assert lines == ["a        1", f"{paint('long', 33)}  22.5"]


def test_ticks_are_round() -> None:
    assert ticks(0.9, 30) == [1, 2, 5, 10, 20]


def test_a_chart_shows_its_lines_and_limits() -> None:
    falling = [(0.0, 100.0), (5.0, 10.0), (10.0, 1.0)]
    lines = chart([(falling, 33)], width=40, height=8, x=(0, 10), y=(0.5, 200), level=50)
    assert len(lines) == 9 and all(visible(line) <= 40 for line in lines)
    dots = [[c for c in line if "\u2801" <= c <= "\u28ff"] for line in lines]
    assert sum(bool(row) for row in dots) >= 6
    assert "100 ┤" in "".join(lines) and lines[-1].rstrip().endswith("10 s")
    broken = [(0.0, math.nan), (1.0, math.inf), (2.0, 0.0)]
    assert chart([(broken, 33)], width=40, height=4, x=(0, 10), y=(1, 10))
