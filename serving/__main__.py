"""`python -m serving` is the command `pointsman`."""

from serving.cli import main

if __name__ == "__main__":
    main()
