"""`python -m stepclr` is the command line."""

from stepclr.cli import main

main()
