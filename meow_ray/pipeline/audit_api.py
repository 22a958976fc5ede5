"""The Python API of audits: what `meow audit`, `meow certify` and `meow verify` do."""

from collections.abc import Mapping, Sequence
from typing import Any

from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.distributed.failures import plain_user_errors
from meow_ray.pipeline.api import ConfigLike, OnEvent, Run, configuration
from meow_ray.pipeline.audited import parts_of_audit, pieces, warn_before_audit
from meow_ray.pipeline.certificate import verify as verifying
from meow_ray.pipeline.certificate import write
from meow_ray.pipeline.certificate.verify import Verified


def audit(
    config: ConfigLike = None,
    overrides: Sequence[str] = (),
    *,
    inputs: Mapping[str, str] | None = None,
    force: bool = False,
    wait: bool = True,
    verify: bool = False,
    on_event: OnEvent = print,
    **options: Any,
) -> Run:
    """Runs the pipeline up to the audit of the tuned model, or audits a given model.

    Args:
        config: a configuration, the path of its YAML file, or None for the defaults.
        overrides: dotted keys with values, such as `"audit.attacks=[direct,prefix]"`.
        inputs: artifacts made elsewhere, by name; with `{"model": "folder"}` nothing is trained.
        force: run the stage `audit` even if it is cached.
        wait: wait while another driver works on a stage, and use its result.
        verify: hash input files again instead of trusting their size and modification time.
        on_event: called when a stage is cached, starts, or has finished; the default prints it.
        **options: for tests and extensions: `stages` and `engine_spec` of `Pipeline`.

    Returns:
        The run: `.attacks` has a row per attack, `.verdicts` one per fact and tier, and
        `.table("audit")` the scores, or the reasons for which they are missing.

    Raises:
        MeowError: a mistake that the user can fix; the message says where and how.
    """
    settings = configuration(config, overrides)
    artifacts: dict[str, Artifact] = {}
    with plain_user_errors():
        for number, part in enumerate(parts_of_audit(settings, inputs, verify=verify, **options)):
            if number == 0:
                warn_before_audit(part)
            for piece, is_forced in pieces(part, force=force):
                states = piece.run(force=is_forced, wait=wait, on_event=on_event)
                artifacts |= {s.stage.artifact: s.artifact for s in states if s.artifact}
        artifacts |= part.pipeline.made_elsewhere()
    return Run(settings, artifacts)


def certify(
    config: ConfigLike = None,
    overrides: Sequence[str] = (),
    *,
    inputs: Mapping[str, str] | None = None,
    key: str | None = None,
    previous: str | None = None,
    **options: Any,
) -> str:
    """Writes the certificate of an audited run, and its page; returns the place of the former.

    Args:
        config: the configuration of the run, the path of its YAML file, or None for the defaults.
        overrides: dotted keys with values.
        inputs: artifacts made elsewhere, by name, as the audit got them.
        key: a PEM file with an Ed25519 private key that signs; None leaves it unsigned.
        previous: the certificate of the request before; None looks for it in the storage roots of
            this run and of the target.
        **options: for tests and extensions: `stages` and `engine_spec` of `Pipeline`.

    Raises:
        MeowError: the audit does not exist yet, the earlier certificate is about another model, or
            the key cannot be used.
    """
    parts = list(parts_of_audit(configuration(config, overrides), inputs, **options))
    return storage.display(write.certify(parts, key=key, previous=previous))


def verify(certificate: str, key: str | None = None) -> Verified:
    """Derives a certificate again from the artifacts in its storage root, without a model.

    Args:
        certificate: the certificate, in its place below the storage root.
        key: a PEM file with the Ed25519 public key of who must have signed; None accepts every key,
            and no signature.

    Returns:
        What was found to be in order, with the content of the certificate.

    Raises:
        MeowError: the certificate does not hold, and the message names the first difference; or it
            cannot be checked.
    """
    return verifying.verify(certificate, key)
