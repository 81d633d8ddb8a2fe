"""`python -m regops info`."""

from __future__ import annotations

import argparse

from regops import info


def main() -> None:
    """Prints what this installation can do here."""
    parser = argparse.ArgumentParser(prog="python -m regops", description=__doc__)
    parser.add_argument("command", choices=["info"], help="versions, instruction sets, CUDA, GPU")
    parser.parse_args()
    for name, value in info().items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"{name + ':':22}{'none' if shown is None else shown}")


if __name__ == "__main__":
    main()
