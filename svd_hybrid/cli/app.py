"""`svdh`: the group of commands, loaded one at a time so that help stays fast."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from svd_hybrid import __version__
from svd_hybrid.faults import run_guarded
from svd_hybrid.registry import did_you_mean

COMMANDS = {
    "compress": "Compress fine-tunes of one base into an artifact.",
    "reload": "Rebuild the merged model, one fine-tune, or a new weighting.",
    "export": "Write the merge or one fine-tune as a LoRA adapter.",
    "verify": "Check every file of an artifact, and the base if given.",
    "inspect": "Show what an artifact holds.",
    "eval": "Score base, fine-tunes and merges on the tasks' data.",
    "compare": "Compare merge methods and their parameters, and keep the best.",
    "cache": "List or clear the results kept by eval and compare.",
    "masks": "Build TALL masks of a family, or measure masks.",
    "stats": "Collect layer statistics from live models, or show what files hold.",
    "methods": "List merge methods and their parameters.",
    "convert": "Convert an artifact in the original .pt layout.",
    "demo": "Train a small real family and run everything on it.",
}


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of a session."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported."""
        if cmd_name not in COMMANDS:
            raise click.UsageError(
                f"no command {cmd_name!r}; {did_you_mean(cmd_name, COMMANDS)}", ctx
            )
        command: click.Command = getattr(import_module(f"svd_hybrid.cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="svdh")
def app() -> None:
    """Keep a family of fine-tuned models as one small, verifiable artifact.

    svdh compress makes it from a base and its fine-tunes; svdh reload rebuilds the merged model,
    any single fine-tune or a new weighting from the base and the artifact alone.
    """


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = sys.argv[1:] if argv is None else argv
    return run_guarded(lambda: app.main(args, prog_name="svdh", standalone_mode=False), args)


if __name__ == "__main__":
    sys.exit(main())
