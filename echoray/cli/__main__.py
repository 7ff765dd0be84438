"""``python -m echoray.cli``."""

from echoray.cli import main

main()
