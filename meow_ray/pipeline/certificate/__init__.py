"""The certificate of an audited run: written, verified, signed, and kept through a purge."""
