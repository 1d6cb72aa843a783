"""What a user can mend."""


class UserError(ValueError):
    """Something that was asked for and cannot be done; its text is one line that says what to do.

    The command line prints it and ends with status 2. Whatever else is raised there is a mistake of ours.
    """
