"""What the user can mend: said in one line by the command line, without a traceback."""


class UserError(ValueError):
    """Something that the user can mend; its one line says what was wrong, and what to do."""
