"""The commands `meow certify`, `meow verify` and `meow purge`."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from meow_ray.cli import show
from meow_ray.cli.options import (
    ConfigOption,
    Inputs,
    Overrides,
    app,
    named_inputs,
    pipeline_options,
)
from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.pipeline.audited import parts_of_audit
from meow_ray.pipeline.certificate import places, purge, verify, write
from meow_ray.pipeline.certificate.form import Difference
from meow_ray.pipeline.pipeline import load_config

DIFFERS = 1
"""The exit status of `meow verify` if the certificate does not hold."""


@app.command()
def certify(
    context: typer.Context,
    overrides: Overrides = None,
    config: ConfigOption = None,
    key: Annotated[
        str | None,
        typer.Option(help="Sign with this Ed25519 private key, a PEM file.", show_default=False),
    ] = None,
    previous: Annotated[
        str | None,
        typer.Option(
            help="The certificate of the request before; the default looks for it in the storage "
            "roots of this run and of the target.",
            show_default=False,
        ),
    ] = None,
    inputs: Inputs = None,
) -> None:
    """Write the certificate of an audited run, and its page."""
    settings = load_config(config, overrides or [])
    parts = parts_of_audit(settings, named_inputs(inputs), **pipeline_options(context))
    uri = write.certify(list(parts), key=key, previous=previous)
    show_counts(show.console(), places.read(uri))
    page = storage.join(places.parent(uri), places.PAGE_FILE)
    print(f"Page:         {storage.display(page)}")
    print(f"Certificate:  {storage.display(uri)}")


@app.command("verify")
def verify_certificate(
    certificate: Annotated[
        str, typer.Argument(help="The certificate, in its place below the storage root.")
    ],
    key: Annotated[
        str | None,
        typer.Option(
            help="Require a signature by this Ed25519 public key, a PEM file.", show_default=False
        ),
    ] = None,
) -> None:
    """Derive a certificate again from the artifacts, without a model; name the first difference."""
    try:
        found = verify.verify(certificate, key)
    except Difference as difference:
        print(f"The certificate does not hold. {difference}", file=sys.stderr)
        raise typer.Exit(DIFFERS) from None
    show_counts(show.console(), found.certificate)
    purged = f", {found.num_purged} were purged" if found.num_purged else ""
    print(f"The certificate holds: {found.num_files} files have their digests{purged}.")
    print(
        f"Not computed again, because only models could show it: {', '.join(found.not_recomputed)}."
    )
    if found.signed_by is None:
        print("It has no signature.")
    elif found.is_trusted:
        print("It is signed with the given key.")
    else:
        print(f"It is signed with the key {found.signed_by}; give --key to check whose that is.")


@app.command("purge")
def purge_request(
    context: typer.Context,
    overrides: Overrides = None,
    config: ConfigOption = None,
    inputs: Inputs = None,
    certificate: Annotated[
        str | None,
        typer.Option(
            help="The certificate of the request, instead of a configuration.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete the text of a certified request, and keep what its certificate needs."""
    if certificate is None:
        settings = load_config(config, overrides or [])
        parts = parts_of_audit(settings, named_inputs(inputs), **pipeline_options(context))
        folder = write.folder_of(write.collect(list(parts)))
        certificate = storage.join(folder, places.CERTIFICATE_FILE)
    planned = purge.plan(certificate)
    for item in planned.deletions:
        print(f"to delete: {item.path}")
    if planned.deletions and not (yes or _is_confirmed(len(planned.deletions))):
        raise MeowError("meow purge: nothing was deleted.")
    log = purge.purge(planned)
    print(f"Purge log:  {storage.display(log)}")


def _is_confirmed(count: int) -> bool:
    """Asks on the terminal.

    Raises:
        MeowError: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise MeowError("meow purge: there is no terminal to ask on. Confirm with --yes.")
    return typer.confirm(f"Delete these {count} files and folders? They cannot be restored.")


def show_counts(target: Console, certificate: places.Certificate) -> None:
    """Prints how many facts have which verdict, by tier."""
    table = show.plain_table("tier", "verdict", "facts")
    for row in certificate["verdicts"]["counts"]:
        table.add_row(row["tier"], row["verdict"], str(row["facts"]))
    target.print(table)
