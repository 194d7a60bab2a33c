"""`python -m monitor` is `unstuck`."""

import sys

from monitor.cli import main

sys.exit(main())
