"""The root of ``orch``: the table of commands, the global flags, and what an error looks like.

A command's module is imported when the command is run, so that ``orch --help`` imports none of them: the table below holds
their short helps (a test compares them with the commands' own).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import click

from orch_cli import output
from orch_cli.commands import Noun, unknown_command
from orchestrator.exceptions import OrchError

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Write and deploy": {
        "init": "Make this folder an Orch project: write an orch.yaml.",
        "deploy": "Create or update the deployments of orch.yaml.",
        "deployment": "Show, run, pause and delete deployments and their schedules.",
        "flow": "Show the flows that have run or been deployed.",
        "dev": "Run a server, a scheduler and a worker in one, for development.",
        "demo": "Deploy and run two flows on a private Redis, and check what comes out.",
    },
    "Run and watch": {
        "flow-run": "Show, watch, cancel, retry and delete flow runs.",
        "task": "Serve and check tasks that run in the background.",
        "task-run": "Show the task runs inside a flow run.",
        "dead": "Show, redrive and drop flow runs whose crash budget is spent.",
        "event": "Show what happened.",
        "variable": "Set and read variables that flows share.",
    },
    "Operate": {
        "worker": "Start, show and drain workers.",
        "work-pool": "Create, show, pause, limit and delete work pools.",
        "work-queue": "Create, show, pause, limit and delete the queues of a work pool.",
        "concurrency-limit": "Let at most so many flow runs and task runs with a tag run at a time.",
        "global-concurrency-limit": "Limit what code does at a time, or how often. For short: gcl.",
        "scheduler": "Start schedulers.",
        "server": "Start, show and stop the server.",
        "namespace": "Show and change what all processes of a namespace agree on.",
        "doctor": "Find what is wrong with the server, the workers and the runs.",
    },
    "Set up": {
        "config": "Show and change settings.",
        "profile": "Keep several sets of settings and switch between them.",
        "completion": "Print a script that completes commands and names in your shell.",
        "version": "Show the version of Orch and of what it runs on.",
        "help": "Show help on a command or a topic, such as exit-codes.",
    },
}
"""Every command of the root with its short help, as ``orch --help`` shows them."""

SHORT_NAMES: Mapping[str, str] = {"gcl": "global-concurrency-limit"}
"""Commands that have a second, shorter name."""

_EXIT_CODES = """\
0    done
1    the operation failed; or the watched run ended Failed or Crashed
2    wrong usage, input or settings; or an answer was missing and there was no terminal to ask on
3    not found
4    not allowed
5    conflict: the name is taken, or the thing's state does not allow it
6    the server cannot be reached, or is not fit to hold runs
7    the watched run was cancelled
124  the time given with --timeout is over
130  stopped with Ctrl-C"""

TOPICS: Mapping[str, str] = {"exit-codes": _EXIT_CODES}


@dataclass(frozen=True)
class Flags:
    """The global flags."""

    profile: str | None = None
    debug: bool = False


class Root(Noun):
    """The root group, which imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the table."""
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, from its module."""
        cmd_name = SHORT_NAMES.get(cmd_name, cmd_name)
        if cmd_name not in self.list_commands(ctx):
            return None
        if cmd_name == "help":
            return help_command
        module_name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"orch_cli.{module_name}"), module_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, importing nothing."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))


def _print_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from orch_cli.version import version

        context.invoke(version)
        context.exit()


@click.group(
    "orch",
    cls=Root,
    examples=(
        "orch dev",
        "orch init",
        "orch deploy --all",
        "orch deployment run hello-flow/hello_flow --watch",
        "orch flow-run ls",
    ),
)
@click.option("--profile", metavar="NAME", help="Use the settings of this profile.")
@click.option("--color", type=click.Choice(output.COLOR_CHOICES), default="auto", show_default=True, help="Colour the output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
@click.pass_context
def orch(context: click.Context, profile: str | None, color: str, debug: bool) -> None:
    """Run Python flows on a fleet of workers, with Redis as the only server."""
    context.obj = Flags(profile, debug)
    output.set_up(color)


@click.command("help", cls=Noun.command_class, examples=("orch help exit-codes", "orch help deployment run"))
@click.argument("words", nargs=-1, metavar="[COMMAND | TOPIC]")
@click.pass_context
def help_command(context: click.Context, words: tuple[str, ...]) -> None:
    """Show help on a command or a topic, such as exit-codes."""
    if len(words) == 1 and words[0] in TOPICS:
        output.write(TOPICS[words[0]])
        return
    parent = context.find_root()
    command: click.Command = parent.command
    for word in words:
        found = command.get_command(parent, word) if isinstance(command, click.Group) else None
        if found is None:
            known = [*(command.list_commands(parent) if isinstance(command, click.Group) else ()), *TOPICS]
            raise unknown_command(parent, word, known)
        parent = click.Context(found, parent=parent, info_name=word)
        command = found
    output.write(command.get_help(parent))
    if not words:
        output.write("\nTopics of 'orch help':\n  " + "\n  ".join(TOPICS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and answer its exit code (``orch help exit-codes``)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = orch.main(args=arguments, prog_name="orch", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (output.ReaderLeft, BrokenPipeError):
        sys.stdout = None  # nothing may be flushed into the closed pipe at exit
        return 0
    except (KeyboardInterrupt, click.Abort) as error:
        return 130 if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt) else 1
    except click.exceptions.NoArgsIsHelpError as error:
        output.say(error.format_message())
        return 2
    except click.UsageError as error:
        output.fail(error, 2, hint=_usage_hint(error), message=error.format_message())
        return 2
    except click.ClickException as error:
        output.fail(error, error.exit_code, message=error.format_message())
        return error.exit_code
    except OrchError as error:
        _show_traceback_if_asked(arguments)
        output.fail(error, error.exit_code, hint=error.hint)
        return error.exit_code
    except Exception as error:
        _show_traceback_if_asked(arguments)
        message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        output.fail(error, 1, hint="Orch did not expect this. --debug before the command shows where.", message=message)
        return 1


def _usage_hint(error: click.UsageError) -> str | None:
    hint: str | None = getattr(error, "hint", None)
    if hint is None and error.ctx is not None:
        hint = f"See: {error.ctx.command_path} --help"
    return hint


def _show_traceback_if_asked(arguments: Sequence[str]) -> None:
    if "--debug" in arguments:
        import traceback

        output.say(output.clean(traceback.format_exc().rstrip()))
