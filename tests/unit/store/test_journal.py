import json

import pytest

from dit_lens.errors import StoreError
from dit_lens.store import journal
from dit_lens.store.journal import Entry, Journal, parse, unit_line


def lines(*given):
    return b"".join(json.dumps(line).encode() + b"\n" for line in given)


UNIT = unit_line("h", {"step": 0, "layer": 2}, Entry(10, 0xABC, 1, 2))


def test_a_unit_counts_when_its_step_is_committed():
    assert parse(lines(UNIT), "j").units == {}
    ledger = parse(lines(UNIT, {"step": 0, "sigma": 1.0}), "j")
    assert ledger.units == {("h", (0, 2)): Entry(10, 0xABC, 1, 2)}
    assert ledger.steps == {0: {"sigma": 1.0}}
    assert (ledger.totals("nan"), ledger.totals("inf"), ledger.totals("bytes")) == (
        {"h": 1},
        {"h": 2},
        {"h": 10},
    )


def test_a_unit_of_no_step_counts_at_once():
    assert ("video", ()) in parse(lines(unit_line("video", {}, Entry(1, 2, 0, 0))), "j").units


@pytest.mark.parametrize(
    "tail", [b'{"unit":"h","at":{"st', b'{"step":1}', b"\0\0\0\0", b"\0\0\n", lines(UNIT)]
)
def test_what_follows_the_last_commit_is_nothing(tail):
    whole = lines(UNIT, {"step": 0})
    ledger = parse(whole + tail, "j")
    assert (set(ledger.steps), ledger.end) == ({0}, len(whole))


def test_units_of_a_torn_attempt_do_not_join_the_next(tmp_path):
    torn = lines({"session": {}}, UNIT)
    again = lines({"session": {}}, {"step": 0})
    assert parse(torn + again, "j").units == {}


def test_damage_before_the_end_is_an_error_that_names_the_line():
    with pytest.raises(StoreError, match=r"runs/j line 2 is not a journal line.*nonsense.*cutting"):
        parse(lines({"step": 0}) + b"nonsense\n" + lines({"step": 1}), "runs/j")


def test_opening_cuts_the_file_back_and_appends_a_session(tmp_path):
    path = tmp_path / journal.NAME
    path.write_bytes(lines(UNIT, {"step": 0}) + lines(UNIT) + b'{"step"')
    held = Journal(str(tmp_path), durable=True)
    held.begin()
    held.append([{"step": 1}])
    held.close()
    held.close()
    kinds = [next(iter(json.loads(line))) for line in path.read_text().splitlines()]
    assert kinds == ["unit", "step", "session", "step"]
    assert set(journal.read(tmp_path).steps) == {0, 1}


def test_two_writers_are_refused_and_the_holder_is_named(tmp_path):
    held = Journal(str(tmp_path), durable=False)
    held.begin()
    with pytest.raises(StoreError, match=r"is locked: .* pid \d+ on"):
        Journal(str(tmp_path), durable=False)
    held.close()
    Journal(str(tmp_path), durable=False).close()
