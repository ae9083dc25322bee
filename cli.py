"""voxseek on the command line: the groups in data-flow order, and how errors leave.

Each package has its commands in its own ``commands.py``: parse, call the library, print. Exit
status: 0 done, 1 refused with a reason, 2 wrong usage. Nothing heavy is imported before a command
needs it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import click

HOME = Path(__file__).resolve().parent
OWN_PACKAGES = ("index_builder", "training", "retrieval")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; the entry point of the ``voxseek`` script."""
    refuse_shadowed_packages()
    from index_builder.embeddings.errors import VoxseekError

    try:
        status = assemble().main(args=args, prog_name="voxseek", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except VoxseekError as error:
        click.echo(f"voxseek: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        click.echo("voxseek: interrupted; the same command goes on from here.", err=True)
        sys.exit(130)
    sys.exit(status or 0)


def refuse_shadowed_packages() -> None:
    """Stop if another distribution's ``training``, say, would be imported in place of ours."""
    for name in OWN_PACKAGES:
        spec = find_spec(name)
        found = spec.origin if spec else None
        expected = HOME / name / "__init__.py"
        if found is None or Path(found).resolve() != expected:
            click.echo(
                f"voxseek: `import {name}` finds {found}, expected {expected}: another package "
                f"shadows it. Install voxseek in an environment of its own.",
                err=True,
            )
            sys.exit(1)


class FlowGroup(click.Group):
    """A group that lists its commands in the order of the data flow, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order they were added."""
        return list(self.commands)


@click.group(cls=FlowGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="voxseek")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings only.")
def voxseek(quiet: bool) -> None:
    """From fMRI voxels to the image that was seen, among billions.

    \b
    Example:  voxseek demo            the main job on a simulated brain
              voxseek COMMAND --help  an example of each command
    """
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    logging.getLogger("voxseek").setLevel(logging.WARNING if quiet else logging.INFO)


def assemble() -> click.Group:
    """Return the command tree; called after the packages are known to be ours."""
    from index_builder.commands import COMMANDS as INDEX_COMMANDS
    from index_builder.embedding_commands import COMMANDS as EMBEDDING_COMMANDS
    from retrieval.commands import COMMANDS as RETRIEVAL_COMMANDS
    from training.commands import COMMANDS as TRAINING_COMMANDS

    for command in (*TRAINING_COMMANDS, *EMBEDDING_COMMANDS, *INDEX_COMMANDS, *RETRIEVAL_COMMANDS):
        voxseek.add_command(command)
    return voxseek


if __name__ == "__main__":
    main()
