"""The command line as a module: `python -m bondwise.cli`."""

from bondwise.cli import main

main()
