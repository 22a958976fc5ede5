"""Audits a tuned model: attacks with controls, and verdicts.

`ray job submit -- python pipelines/audit.py --config C [--input model=M] [key=value …]`
"""

from meow_ray.cli.main import main
from meow_ray.cli.running import audit

if __name__ == "__main__":
    main(audit)
