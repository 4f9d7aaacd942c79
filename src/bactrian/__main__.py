"""`python -m bactrian` is the command `bactrian`."""

from bactrian.cli.app import main

if __name__ == "__main__":
    main()
