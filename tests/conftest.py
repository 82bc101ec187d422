"""Settings of every test process: several share the cores, so waiting threads sleep instead of spinning."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: OpenMP reads it once
