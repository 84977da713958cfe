"""`verify`, in its three forms, and `selftest`, which verifies the verifier."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from graftkit.checkpoint.stamps import unchanged
from graftkit.commands.shared import expand, print_json, quiet_libraries
from graftkit.errors import RecipeError


def verify(options: Namespace) -> int:
    """Check that B behaves like A, an adapter on its base, or that B is A with an adapter merged into it."""
    if options.b is None and not options.adapter:
        raise RecipeError("verify: give two checkpoints A and B, or --adapter DIR and at most its base A")
    if options.adapter:
        alone = [name for name in ("lens", "signal", "report", "paged", "device") if getattr(options, name, None)]
        if alone:
            raise RecipeError(f"--{alone[0]}: is for two checkpoints; leave it out with --adapter")
        return _verify_adapter(options) if options.b is None else _verify_merge(options)
    quiet_libraries()
    from graftkit import compare
    from graftkit.errors import VerificationFailed
    from graftkit.report import terminal

    if options.device and not (options.lens or options.signal):
        raise RecipeError("--device: only lens and signal run on it; add --lens or --signal")
    with unchanged(options.a, options.b), _naming_damage(options.b), terminal.progress(silent=options.json) as progress:
        found = compare.verify(
            options.a, options.b, outputs=not options.no_outputs, lens=options.lens, signal=options.signal,
            device=options.device, paged=options.paged,
            progress=(lambda what, share: progress(what, share, 1.0)) if progress else None,
        )  # fmt: skip
    if options.report:
        from graftkit.report.comparison import write_comparison

        write_comparison(options.a, options.b, found, Path(expand(options.report)))
    if options.json:
        print_json(found.to_json())
    else:
        terminal.print_verification(found)
    return VerificationFailed.exit_code if found.failures else 0


def _verify_adapter(options: Namespace) -> int:
    quiet_libraries()
    from graftkit.adapter_verification import verify_adapter
    from graftkit.errors import VerificationFailed
    from graftkit.report import terminal

    with unchanged(expand(options.adapter), options.a):
        found = verify_adapter(expand(options.adapter), options.a, outputs=not options.no_outputs)
    if options.json:
        print_json(found.to_json())
    else:
        terminal.print_adapter_verification(found)
    return VerificationFailed.exit_code if found.failures else 0


def _verify_merge(options: Namespace) -> int:
    if options.no_outputs:
        raise RecipeError(
            "--no-outputs: a merge is replayed with both models loaded; leave it out with A, B and --adapter"
        )
    quiet_libraries()
    from graftkit.errors import VerificationFailed
    from graftkit.merge_verification import verify_merge
    from graftkit.report import terminal

    with unchanged(expand(options.adapter), options.a, options.b), _naming_damage(options.b):
        found = verify_merge(options.a, options.b, expand(options.adapter))
    if options.json:
        print_json(found.to_json())
    else:
        terminal.print_merge_verification(found)
    return VerificationFailed.exit_code if found.failures else 0


@contextlib.contextmanager
def _naming_damage(result: str) -> Iterator[None]:
    """Where a checkpoint is refused that its report describes, name the files that are not as they were written."""
    from graftkit.errors import InputRejected, few
    from graftkit.report.manifest import changed_files

    try:
        yield
    except InputRejected as error:
        if changed := changed_files(Path(result)):
            raise InputRejected(f"{error}; by the report beside it, not as written: {few(changed)}") from error
        raise


def selftest(options: Namespace) -> int:
    """Verify the verifier."""
    quiet_libraries()
    from graftkit.errors import VerificationFailed
    from graftkit.report import terminal
    from graftkit.selftest import run

    with terminal.progress(silent=options.quiet or options.json) as progress:
        found = run.selftest(
            options.model, leave_out=options.without, outputs=not options.no_outputs, progress=progress
        )
    if options.json:
        print_json(found.to_json())
    else:
        terminal.print_selftest(found, verbose=options.verbose, quiet=options.quiet)
    return VerificationFailed.exit_code if found.failures else 0
