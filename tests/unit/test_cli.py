"""The command line: what a store holds, and errors without a traceback."""

import sys

import pytest

import dit_lens as dl
from dit_lens import cli


def test_info_says_what_is_there_and_what_is_missing(lens, sample, tmp_path, capsys):
    @dl.keeps("frame")
    def odd(h):
        return h.mean((1, 2, 3)) / 0

    run = lens.run(sample, steps=2, record=[dl.energy, odd], store=tmp_path)
    cli.info(tmp_path)
    said = capsys.readouterr().out
    assert f"{run.path}: complete, 2 steps" in said
    lines = {line.split(":")[0].strip(): line for line in said.splitlines()}
    assert "Inf" in lines["odd"] and "NaN" not in lines["energy"]


def test_a_folder_without_runs_is_an_error_of_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dit-lens", "info", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit, match=r"dit-lens: .*nothing"):
        cli.main()
