"""Files that end the process that opens them, and one at which it waits. For PYTHONPATH.

Python imports a module of this name as it starts, so it acts in each process, whoever starts it.
"""

import os
import signal
import sys
import threading

_FATAL = {
    "deadly-segv": signal.SIGSEGV,
    "deadly-kill": signal.SIGKILL,
    "deadly-once": signal.SIGKILL,
}
_DIED = ".died"
_HELD = "held.png"


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open":
        return
    name = os.path.basename(str(arguments[0]))
    if (stem := name.partition(".")[0]) in _FATAL and not name.endswith(_DIED):
        if stem == "deadly-once" and not _is_first(f"{arguments[0]}{_DIED}"):
            return
        # This thread, as a decoder's fault does: another one may take what the process is sent.
        signal.pthread_kill(threading.get_ident(), _FATAL[stem])
    elif name == _HELD and "HELD_AT" in os.environ:
        _wait(os.environ["HELD_AT"])
    elif name == "loud.png":
        print("a library says something", flush=True)
        os.write(1, b"and another one, below Python\n")


def _is_first(mark: str) -> bool:
    """Say whether this is the first time, and leave a mark of it."""
    if os.path.exists(mark):
        return False
    os.mkdir(mark)
    return True


def _wait(folder: str) -> None:
    """Say which process waits, and wait until somebody opens the other pipe, once."""
    with open(f"{folder}/waits", "w") as told:
        told.write(f"{os.getpid()}\n")
    with open(f"{folder}/goes-on"):
        pass
    del os.environ["HELD_AT"]


if hasattr(os, "register_at_fork"):
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
sys.addaudithook(_hook)
if "LOUD" in os.environ:
    print("said before anything else", flush=True)
