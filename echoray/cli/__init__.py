"""The ``echoray`` command: verbs only; everything heavy is imported when a verb runs."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``echoray`` command; exits 2 on a user's mistake and 130 on Ctrl-C."""
    from echoray.cli.app import run_app

    run_app()
