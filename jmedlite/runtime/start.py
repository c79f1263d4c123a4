"""Start of a child: llama.cpp before everything else, then the module that serves.

`python -m jmedlite.runtime.start MODULE` is `python -m MODULE` but for the order in which native libraries are loaded.
Builds for GPUs may carry a C++ runtime of their own: where numpy had brought in the system's before, llama.cpp's
tokenizer crashed. And packages are imported leanly (base/lean.py), which is a third of the time that a start takes.
"""

import contextlib
import runpy
import sys

if __name__ == "__main__":
    from jmedlite.base.errors import NativeError
    from jmedlite.base.lean import import_leanly
    from jmedlite.base.libraries import libllama

    import_leanly()
    with contextlib.suppress(NativeError):  # whoever calls it says what is wrong
        libllama()
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
