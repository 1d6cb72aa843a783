"""What a user can mend."""


class UserError(ValueError):
    """Something that was asked for and cannot be done; its text is one line that says what to do.

    The command line prints it and ends with status 2. Whatever else is raised there is a mistake of ours.

    Example:
        >>> from lightning_pce.objectives import Power
        >>> try:
        ...     Power(0)
        ... except UserError as error:
        ...     print(error)
        Expected argument `a` to be a finite number above 0 but got 0: its limit at 0 is NLL().
    """
