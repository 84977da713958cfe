"""What of an error is the system's fault, whatever library reported it."""

import errno

import pytest

from graftkit.errors import InputRejected, NotThere, leads_nowhere, system_fault

SPELLED = [
    "unable to mmap 3220808 bytes from file </m/model.safetensors>: Input/output error (5)",
    "I/O error: Cannot allocate memory (os error 12)",
    "Error code 24 (Too many open files) while opening",
]


@pytest.mark.parametrize("text", SPELLED)
def test_libraries_spell_the_number_of_what_failed(text):
    assert system_fault(RuntimeError(text)) is not None
    try:
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            raise ValueError("the file is damaged") from error
    except ValueError as wrapped:
        assert "seen as: the file is damaged" in system_fault(wrapped)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("No such file or directory (os error 2)"),
        RuntimeError("size mismatch (5)"),
        OSError(errno.ENOENT, "No such file or directory"),
        ValueError("Input/output error"),
    ],
)
def test_what_the_input_or_the_recipe_is_to_blame_for(error):
    assert system_fault(error) is None


def raised(error, *, cause=None, meanwhile=None):
    """``error`` as it was raised from ``cause``, or while ``meanwhile`` was being handled."""
    try:
        try:
            if meanwhile is not None:
                raise meanwhile
        finally:
            if cause is not None:
                raise error from cause
            raise error
    except InputRejected as found:
        return found


def test_a_path_leads_nowhere_where_that_is_the_cause_and_not_what_was_handled_meanwhile():
    assert leads_nowhere(NotThere("none"))
    assert leads_nowhere(raised(InputRejected("none"), cause=FileNotFoundError(errno.ENOENT, "x")))
    assert leads_nowhere(raised(InputRejected("none"), cause=NotThere("none")))
    found = raised(InputRejected("org/model: malformed"), meanwhile=FileNotFoundError(errno.ENOENT, "x"))
    assert isinstance(found.__context__, FileNotFoundError)
    assert not leads_nowhere(found)
    assert not leads_nowhere(raised(InputRejected("malformed"), cause=PermissionError(errno.EACCES, "x")))
