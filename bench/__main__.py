"""`python -m bench` times regops against torch and other libraries, and writes a report.

  python -m bench                                   everything of the default profile
  python -m bench --op dropout --size 64k 16M       some sizes of one op
  python -m bench --resume                          go on where an interrupted run stopped
  python -m bench compare A.json B.json             what moved between two runs
  python -m bench report out/benchmark.json         the report again, of what a run recorded
  python -m bench check out/summary.json            the goals that a run must meet
  python -m bench readme bench/results/*.json       the README's figures, of committed runs

Ctrl-C ends the timing; what was measured by then is reported, and `--resume` goes on from there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from bench import check, compare, readme, report
from bench.profiles import PROFILES, Profile
from bench.progress import LiveProgress
from bench.summary import MACHINE

ROOT = Path(__file__).parent.parent
OUT = ROOT / "bench" / "out"

_PROFILES_HELP = """smoke: does everything work? float32, small, half a minute. default: float32 and
bfloat16, up to 16M elements on a CPU, some twenty minutes. full: float16 too, longer, and all
sizes that fit. Default: %(default)s"""

_COMMANDS: dict[str, Callable[[Sequence[str]], object]] = {
    "check": check.main,
    "compare": compare.main,
    "readme": readme.main,
    "report": report.main,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a profile, or another of the commands.

    Returns:
        0 if everything was timed and the examples ran, otherwise pytest's or an example's status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in _COMMANDS:
        status = _COMMANDS[arguments[0]](arguments[1:])
        return status if isinstance(status, int) else 0
    parser = _parser()
    options = parser.parse_args(arguments)
    profile = PROFILES[options.profile]
    options.out = options.out or _usual_out(options)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{options.out}: {error.strerror}")
    results = options.out / "benchmark.json"
    stale = [results, *options.out.glob("example-*.json")]
    for path in [results] if options.resume else stale:
        path.unlink(missing_ok=True)

    # Its own handle on the terminal, because pytest captures the usual one while a test runs.
    console = Console(file=os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8"))
    status = int(
        pytest.main(
            [
                str(ROOT / "bench"),
                f"--rootdir={ROOT}",
                f"--bench-profile={options.profile}",
                *(
                    f"--bench-{name}={value}"
                    for name in ("op", "size", "dtype", "device", "provider")
                    for value in getattr(options, name)
                ),
                # Its ceilings belong to every run.
                *([f"--bench-op={MACHINE}"] if options.op else []),
                f"--bench-journal={options.out / 'journal.jsonl'}",
                *(["--bench-resume"] if options.resume else []),
                f"--bench-arguments={' '.join(_arguments(options))}",
                f"--benchmark-json={results}",
                "--benchmark-quiet",
                # Its place is taken by the progress; the project's addopts would need it.
                "-pno:terminal",
                "-oaddopts=",
                "-pno:cacheprovider",
                # It warns where nothing was timed; that is said below.
                "-Wignore::pytest_benchmark.logger.PytestBenchmarkWarning",
            ],
            plugins=[LiveProgress(console)],
        )
    )
    if status == pytest.ExitCode.USAGE_ERROR:
        return status
    if status == pytest.ExitCode.INTERRUPTED:
        place = [] if options.out == _usual_out(options) else [f"--out={options.out}"]
        again = " ".join(["python -m bench", *_arguments(options), *place, "--resume"])
        console.print(
            f"interrupted: reporting what was measured; to go on: {again}",
            highlight=False,
            soft_wrap=True,
        )
    elif not (options.op or options.no_examples):
        status = status or _train(options.out, profile, options.resume)
    if not results.exists():
        console.print("nothing was timed, so there is nothing to report")
        return status or 1
    # Relative, if it can be: shorter to read, and to click on in a terminal.
    here = results.relative_to(Path.cwd()) if results.is_relative_to(Path.cwd()) else results
    report.main([str(here)])
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", choices=list(PROFILES), default="default", help=_PROFILES_HELP)
    by_name = {
        "op": "as in dropout",
        "size": "as in 16M, also beyond the profile's sizes",
        "dtype": "as in bfloat16, also beyond the profile's",
        "device": "cpu or cuda; default: all there are",
        "provider": "as in eager; default: all that are installed",
    }
    for name, example in by_name.items():
        parser.add_argument(
            f"--{name}", nargs="+", action="extend", default=[], metavar=name.upper(), help=example
        )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to write to; default: bench/out, or one in it for other profiles or parts",
    )
    parser.add_argument("--resume", action="store_true", help="keep what is measured there already")
    parser.add_argument(
        "--no-examples", action="store_true", help="train nothing; so it is where ops are chosen"
    )
    return parser


def _usual_out(options: argparse.Namespace) -> Path:
    """A run of a part, or a shorter one, does not replace the one that took long."""
    if any(getattr(options, name) for name in ("op", "size", "dtype", "device", "provider")):
        return OUT / "part"
    return OUT if options.profile == "default" else OUT / options.profile


def _arguments(options: argparse.Namespace) -> list[str]:
    """Those that decide what is timed, as they can be given again."""
    result = [f"--profile={options.profile}"]
    for name in ("op", "size", "dtype", "device", "provider"):
        values = getattr(options, name)
        result += [f"--{name}", *values] if values else []
    return result + (["--no-examples"] if options.no_examples else [])


def _train(out: Path, profile: Profile, resume: bool) -> int:
    """Runs the examples; each in a process, for its own memory and threads."""
    search = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    status = 0
    for name, arguments in profile.examples.items():
        result = out / f"example-{name}.json"
        if resume and result.exists():
            continue
        script = ROOT / "examples" / f"{name}.py"
        done = subprocess.run(
            [sys.executable, str(script), *arguments, f"--json={result}"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
            check=False,
        )
        status = status or done.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
