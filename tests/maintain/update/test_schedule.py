"""Units and cron lines: accepted by the schedulers' own checks, and they call what was meant."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from retrodb.errors import EXIT_REJECTS, UsageError
from retrodb.maintain.update.schedule import plan_schedule

ODD = "/srv/my data/100% of $HOME 'new' \\x.retrodb"
FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


@pytest.mark.parametrize("every", ["15m", "6h", "1d", "1w"])
def test_systemd_accepts_the_units(tmp_path: Path, every: str) -> None:
    if not (program := shutil.which("systemd-analyze")):
        pytest.skip("no systemd here")
    files = plan_schedule(ODD, every=every, config="/etc/re cipe%.toml")
    assert [Path(file.name).suffix for file in files] == [".service", ".timer"]
    for file in files:
        (tmp_path / file.name).write_text(file.text)
    found = subprocess.run(
        [program, "verify", *(str(tmp_path / file.name) for file in files)], capture_output=True, text=True
    )
    assert (found.returncode, [line for line in found.stderr.splitlines() if "retrodb" in line]) == (0, [])
    [calendar] = re.findall("^OnCalendar=(.*)$", files[1].text, re.MULTILINE)
    assert subprocess.run([program, "calendar", calendar], capture_output=True).returncode == 0


def test_a_unit_calls_update_with_the_very_paths(tmp_path: Path) -> None:
    service = plan_schedule(ODD, config="/etc/re cipe%.toml")[0]
    [line] = re.findall("^ExecStart=(.*)$", service.text, re.MULTILINE)
    assert unit_words(line)[-5:] == ["update", ODD, "--no-progress", "--config", "/etc/re cipe%.toml"]
    assert Path(unit_words(line)[0]).is_absolute()


def test_rejected_records_do_not_fail_the_unit() -> None:
    assert f"\nSuccessExitStatus={EXIT_REJECTS}\n" in plan_schedule("/srv/db")[0].text


@pytest.mark.parametrize("every", ["1m", "30m", "1h", "12h", "1d", "1w"])
def test_a_cron_line_has_five_good_fields_and_a_command_without_bare_percent_signs(every: str) -> None:
    [file] = plan_schedule(ODD, kind="cron", every=every)
    *fields, command = file.text.rstrip("\n").split(" ", 5)
    for field, (low, high) in zip(fields, FIELDS, strict=True):
        number = re.fullmatch(r"\*|\*/(\d+)|(\d+)", field)
        assert number, field
        assert all(low <= int(each) <= max(high, 1) for each in number.groups() if each)
    assert re.search(r"(?<!\\)%", command) is None
    assert shlex.split(command.replace("\\%", "%"))[-3:] == ["update", ODD, "--no-progress"]


@pytest.mark.parametrize("every", ["5h", "0m", "7m", "2d", "daily", "", "-1d", "1"])
def test_a_rhythm_that_no_calendar_keeps_is_refused(every: str) -> None:
    with pytest.raises(UsageError, match="15m"):
        plan_schedule("db", every=every)


def test_relative_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    [file] = plan_schedule("my.retrodb", kind="cron", config="r.toml")
    assert f"{tmp_path}/my.retrodb --no-progress --config {tmp_path}/r.toml" in file.text
    with pytest.raises(UsageError, match="control character"):
        plan_schedule("a\nb")


def unit_words(line: str) -> list[str]:
    """The words of a unit's command line, as systemd.service(5) has them."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"', line)
    return [re.sub(r"\\(.)", r"\1", word).replace("%%", "%").replace("$$", "$") for word in words]
