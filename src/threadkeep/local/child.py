"""The embedded model's process: llama.cpp's server on 127.0.0.1, alive as long as its parent.

The first line of standard input is a JSON object `{"path", "api_key", "threads"}`; the key comes
this way because arguments and environments can be read by others. When the model is loaded one
line of JSON `{"address"}` goes to the standard output that the parent gave. The process ends when
standard input closes, which the operating system does however the parent ended.

Run by path (`python -P child.py`), so that nothing of Threadkeep or the SDK is loaded here.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any, BinaryIO

# Room for two conversations at once: each may use half (see model.py's limits).
CONTEXT_TOKENS = 8192
SLOTS = 2
PROMPT_CACHE_MIB = 256
ERRORS_ONLY = 1


def main() -> None:
    """Serve until standard input closes."""
    sys.tracebacklimit = 0  # why it did not load is said in one line
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes us
    answers = _take_standard_output()
    settings = json.loads(sys.stdin.buffer.readline())
    # A thread, so that a parent that dies while the model loads takes us with it.
    watcher = threading.Thread(target=_end_with_parent, daemon=True)
    watcher.start()
    server = _serve(settings)
    answers.write(json.dumps({"address": server.listening_address}).encode() + b"\n")
    answers.flush()
    watcher.join()


def _take_standard_output() -> BinaryIO:
    """Keep the pipe to the parent for ourselves; what llama.cpp prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _end_with_parent() -> None:
    while os.read(0, 1024):  # unbuffered: a lock held here would disturb an exit after an error
        pass
    os._exit(0)  # llama.cpp's threads would hold an ordinary exit up


def _serve(settings: dict[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["path"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings["api_key"]]
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = SLOTS
    params.kv_unified = True
    params.cpuparams.n_threads = settings["threads"]
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.ui = False
    params.endpoint_slots = False  # it would show conversations
    params.cors_origins = ""
    params.offline = True
    params.verbosity = ERRORS_ONLY
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
