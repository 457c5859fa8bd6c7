"""Files that others may have changed: read safely, written whole, and named in every error.

A path comes in; plain bytes, JSON or tensors come out. It knows nothing of runs or models.
Start at :mod:`~rlhf_core.files.plain_files`.
"""
