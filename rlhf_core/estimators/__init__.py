"""Advantage estimators without a critic, one pure function each, and what GAE takes from the length of a response.

Rewards per token come in, advantages per token (batch, response) come out; nothing is whitened.
Start at :mod:`~rlhf_core.estimators.leave_one_out`; :mod:`rlhf_core.advantages` gives them their names.
"""
