"""The command line: one verb per job, errors in one sentence, exit codes 0, 1 and 2.

0 is done, 1 failed, 2 wrong usage. A verb is a dataclass: its fields are the flags. What takes
time to import is imported where Ctrl-C is heard.
"""

import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

STOPPED = "Stopped by Ctrl-C; nothing was left half-written."
GOES_ON = "Stopped by Ctrl-C; run the same command again to go on."


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a verb, and turn every error that a user can mend into one sentence."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = None
    try:
        from bondwise.cli.parse import WRONG_USAGE, verb_of
        from bondwise.errors import BondwiseError

        try:
            verb = verb_of(words)
            verb.run()
            sys.stdout.flush()
        except BondwiseError as error:
            _fail(str(error), 2 if isinstance(error, WRONG_USAGE) else 1)
    except KeyboardInterrupt:
        _fail(GOES_ON if verb is not None and verb.goes_on else STOPPED, 1)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(_disk(error), 1)
    sys.exit(0)


def _fail(sentence: str, code: int) -> NoReturn:
    name = "\033[31mbondwise:\033[0m" if sys.stderr.isatty() else "bondwise:"
    whole = f"{sentence.rstrip('.')}."  # its first word may be a path: its case stays
    print(name, whole, file=sys.stderr)
    sys.exit(code)


def _disk(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "The disk is full; free some space and run it again (nothing was left half-written)."
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}; nothing was left half-written."
