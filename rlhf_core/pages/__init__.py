"""Pages that a browser opens without a network: a document, and the credit of responses token by token.

Plain numbers and texts come in; HTML comes out. Only :mod:`~rlhf_core.pages.credit_maps` knows what a rollout is, and
the rest needs nothing but the standard library.
Start at :mod:`~rlhf_core.pages.document`.
"""
