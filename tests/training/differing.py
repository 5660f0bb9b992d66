"""pretrain_bert.py, of which one rank has something else: `differing.py RANK EXTRA [flags]`.

EXTRA: flags and NAME=value of that rank, separated by spaces; "code" alone gives it another hash of one file.
"""

from __future__ import annotations

import os
import sys

from megatron.errors import main_guard
from megatron.training import agreement
from pretrain_bert import main

if __name__ == "__main__":
    rank, extra, *sys.argv[1:] = sys.argv[1:]
    if os.environ["RANK"] == rank:
        if extra == "code":
            code_facts = agreement.code_facts
            agreement.code_facts = lambda: {**code_facts(), "code in megatron/errors.py": "0123456789ab"}
        for word in [] if extra == "code" else extra.split():
            if "=" in word:
                name, _, value = word.partition("=")
                os.environ[name] = value
            else:
                sys.argv.append(word)
    main_guard(main)
