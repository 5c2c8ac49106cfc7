"""`python -m modicl` is the command `modicl`."""

from modicl.cli import main

main()
