"""The command that goes on with a comparison or a run that was interrupted."""


def resume_command(*, overwrite: bool) -> str:
    """The command as it was typed, but for ``--overwrite true``, which would delete what is there."""
    from rlhf_core.run.page import command

    return f"{command()} --overwrite false" if overwrite else command()
