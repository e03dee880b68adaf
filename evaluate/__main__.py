"""`python -m evaluate model=ViT-B-32 pretrained=<tag, file or export folder> suite=quick`, or a subcommand."""

import sys

from crawl2clip.config import command
from evaluate.command import run
from evaluate.config import EvaluateConfig, register_zoo
from evaluate.subcommands import SUBCOMMANDS, main

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in SUBCOMMANDS:
        sys.exit(main(sys.argv[1:]))
    register_zoo()
    command("evaluate", EvaluateConfig, run)
