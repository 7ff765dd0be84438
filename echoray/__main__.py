"""``python -m echoray``."""

from echoray.cli import main

main()
