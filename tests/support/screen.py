"""What stands on a terminal of so many columns behind everything that was printed, with the moves that progress bars make."""

import io
import re

CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def lines_on_screen(printed, columns):
    """The lines of the screen, without trailing blanks; ``ValueError`` for a move that is not known here."""
    lines, row, column = [""], 0, 0
    for arguments, letter, end, plain in CONTROL.findall(printed):
        if letter == "A":
            row -= int(arguments or 1)
        elif letter == "K":
            lines[row] = "" if arguments == "2" else lines[row][:column]
        elif letter not in ("", "m", "h", "l"):
            raise ValueError(f"{arguments}{letter}")
        if end:
            column, row = 0, row + (end == "\n")
        for character in plain:
            if column == columns:
                column, row = 0, row + 1
            lines += [""] * (row + 1 - len(lines))
            line = lines[row].ljust(column)
            lines[row] = line[:column] + character + line[column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]
