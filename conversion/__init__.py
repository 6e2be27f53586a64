"""From Meta's checkpoints to folders for transformers, and the proof that nothing was lost.

    python -m conversion list
    python -m conversion convert facebook/sapiens-pose-1b --output sapiens-pose-1b
    python -m conversion verify sapiens-pose-1b --source facebook/sapiens-pose-1b

Runs from a checkout; it is not part of the installed package.
"""
