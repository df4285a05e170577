"""What ``orch`` does with mistakes: messages, hints, exit codes, questions."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import click
import pytest

from orch_cli import main as root
from orch_cli import prompts
from orch_cli.commands import Usage
from orch_cli.main import main
from orch_cli.options import DURATION, MOMENT, state_names
from orchestrator import clock
from orchestrator.exceptions import OrchError

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def nowhere(orch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not exist."""
    monkeypatch.setenv("ORCH_REDIS_URL", "redis://:canary@127.0.0.1:1/0")


def test_every_exception_has_an_exit_code_of_the_table() -> None:
    codes = {int(line.split()[0]) for line in root.TOPICS["exit-codes"].splitlines()}
    kinds: list[type[OrchError]] = [OrchError, *OrchError.__subclasses__()]
    assert {kind.exit_code for kind in kinds} <= codes


def test_exit_codes_are_documented(capsys: Capture) -> None:
    assert main(["help", "exit-codes"]) == 0
    assert "124  the time given with --timeout is over" in capsys.readouterr().out


def test_help_shows_the_help_of_a_command(capsys: Capture) -> None:
    assert main(["help", "deployment", "run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: orch deployment run [OPTIONS] DEPLOYMENT")
    assert "Examples:" in shown


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("deploymnt ls", "orch deployment"),
        ("flow-run cancle", "orch flow-run cancel"),
        ("help exit-cods", "exit-codes"),
        ("work-pool frobnicate", "orch work-pool --help"),
    ],
)
def test_a_mistyped_command_is_answered_by_a_suggestion(line: str, suggestion: str, capsys: Capture) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: There is no command ")
    assert suggestion in captured.err


@pytest.mark.parametrize("line", ["flow-run list", "flow-run rm", "work-pool get"])
def test_verbs_have_their_usual_aliases(line: str) -> None:
    noun, verb = line.split()
    context = click.Context(root.orch)
    command = root.orch.get_command(context, noun)
    assert isinstance(command, click.Group)
    found = command.get_command(context, verb)
    assert found is not None
    assert found.name in ("ls", "delete", "inspect")


def test_an_unknown_option_points_to_the_help(capsys: Capture) -> None:
    assert main(["flow-run", "ls", "--colour"]) == 2
    assert "hint: See: orch flow-run ls --help" in capsys.readouterr().err


@pytest.mark.usefixtures("nowhere")
def test_a_server_that_is_away_ends_with_6_and_no_password(capsys: Capture) -> None:
    assert main(["flow-run", "ls"]) == 6
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "hint: " in captured.err
    assert "canary" not in captured.err


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_with_json_the_error_is_an_object_on_stdout_too(form: str, capsys: Capture) -> None:
    assert main(["work-pool", "ls", "-o", form]) == 6
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["code"] == 6
    assert error["hint"]
    assert f"error: {error['message']}" in captured.err


@pytest.mark.usefixtures("nowhere")
def test_a_traceback_is_shown_with_debug_only_and_without_the_password(capsys: Capture) -> None:
    main(["work-pool", "ls"])
    assert "Traceback" not in capsys.readouterr().err
    main(["--debug", "work-pool", "ls"])
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "canary" not in shown


def test_a_wrong_setting_ends_with_2(orch_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("ORCH_NAMESPASE", "x")
    assert main(["flow-run", "ls"]) == 2
    assert "namespace" in capsys.readouterr().err.lower()


def test_an_unknown_profile_ends_with_3(orch_home: Path, capsys: Capture) -> None:
    assert main(["--profile", "nope", "config", "view"]) == 3
    assert "nope" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_a_closed_pipe_quietly(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("orch_cli.output.Printer.one", interrupted)
    assert main(["version"]) == 130


def test_output_can_be_cut_off_by_its_reader() -> None:
    line = f"{sys.executable} -m orch_cli config view -o wide | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unexpected_error_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("orch_cli.output.Printer.one", broken)
    assert main(["version"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: KeyError: 'x'")
    assert "--debug" in shown


def test_help_imports_no_command_and_no_redis() -> None:
    code = (
        "import sys; from orch_cli.main import main; main(['--help']); "
        "heavy = {'redis', 'rich', 'yaml', 'pydantic', 'orch_cli.flow_run', 'orchestrator.store'}; "
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# --- questions ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the person at the terminal types."""
    given: list[str] = []
    monkeypatch.setattr(prompts, "on_terminal", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: given.pop(0))
    return given


def test_without_a_terminal_a_question_is_an_error_that_names_the_flag() -> None:
    with pytest.raises(Usage) as caught:
        prompts.confirm("Delete work pool 'etl'?", yes=False)
    assert caught.value.exit_code == 2
    assert caught.value.hint == "Answer with --yes."
    prompts.confirm("Delete work pool 'etl'?", yes=True)


def test_declining_changes_nothing_and_ends_with_1(answers: list[str]) -> None:
    answers[:] = ["n"]
    with pytest.raises(prompts.Declined) as caught:
        prompts.confirm("Delete?", yes=False)
    assert caught.value.exit_code == 1
    answers[:] = ["y"]
    prompts.confirm("Delete?", yes=False)


def test_over_a_hundred_things_their_number_has_to_be_typed(answers: list[str]) -> None:
    answers[:] = ["y"]
    with pytest.raises(prompts.Declined):
        prompts.confirm("Delete 101 runs?", yes=False, count=101)
    answers[:] = ["101"]
    prompts.confirm("Delete 101 runs?", yes=False, count=101)


def test_a_choice_is_made_by_number(answers: list[str]) -> None:
    answers[:] = ["7", "2"]
    assert prompts.choose("Which work pool?", ["etl", "gpu"]) == 1


# --- values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("90", timedelta(seconds=90)),
        ("90s", timedelta(seconds=90)),
        ("1.5h", timedelta(minutes=90)),
        ("1h30m", timedelta(minutes=90)),
        ("2 d", timedelta(days=2)),
        ("10 min", timedelta(minutes=10)),
        ("250ms", timedelta(milliseconds=250)),
    ],
)
def test_durations_are_written_as_people_write_them(text: str, length: timedelta) -> None:
    assert DURATION.convert(text, None, None) == length


@pytest.mark.parametrize("text", ["", "soon", "-5m", "5y", "1h-", "9" * 30 + "d"])
def test_a_wrong_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        DURATION.convert(text, None, None)


def test_moments_may_name_their_zone_or_be_local() -> None:
    with_zone = MOMENT.convert("2026-12-31T18:00+09:00", None, None)
    assert with_zone.timestamp() == 1798707600
    local = MOMENT.convert("2026-12-31T18:00", None, None)
    assert local.tzinfo is not None
    assert (local.hour, local.minute) == (18, 0)


def test_a_time_of_day_means_the_next_such_time() -> None:
    now = clock.now().astimezone()
    earlier = (now - timedelta(minutes=2)).strftime("%H:%M")
    assert timedelta(hours=23) < MOMENT.convert(earlier, None, None) - now < timedelta(hours=25)
    tomorrow = MOMENT.convert("tomorrow 9:00", None, None)
    assert (tomorrow.date() - now.date(), tomorrow.hour) == (timedelta(days=1), 9)


@pytest.mark.parametrize("text", ["", "later", "25:00", "2026-13-01", "99999-01-01"])
def test_a_wrong_moment_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        MOMENT.convert(text, None, None)


def test_states_may_be_written_in_any_case() -> None:
    assert state_names(("late", "AWAITING_RETRY", "awaiting-concurrency-slot")) == (
        "Late",
        "AwaitingRetry",
        "AwaitingConcurrencySlot",
    )
    with pytest.raises(Usage):
        state_names(("done",))


# --- completion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, capsys: Capture) -> None:
    assert main(["completion", shell]) == 0
    assert "_ORCH_COMPLETE" in capsys.readouterr().out


def complete(words: str, current: str) -> tuple[int, str, str]:
    code = "import sys; from orch_cli.main import main; sys.exit(main())"
    from orchestrator.settings import child_environment

    environment = child_environment(_ORCH_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=current)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_commands_are_completed() -> None:
    code, shown, _ = complete("orch work-", "1")
    assert code == 0
    assert shown.split() == ["plain,work-pool", "plain,work-queue"]


def test_completion_without_a_server_completes_nothing_and_says_nothing(orch_home: Path) -> None:
    code, shown, said = complete("orch work-pool inspect ", "3")
    assert (code, shown.strip(), said) == (0, "", "")
    assert not (orch_home / "data").exists()


def test_a_day_without_a_time_is_refused_with_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deployment", "run", "etl/nightly", "--start-at", "tomorrow"]) == 2
    said = capsys.readouterr().err
    assert "'tomorrow' is no moment. Write for example 18:00, 'tomorrow 9:00' or" in said
    assert "caused by" not in said
