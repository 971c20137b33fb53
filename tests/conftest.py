"""Every test runs on the CPU, whatever else the machine has."""

import os

# Set before anything imports JAX. libtpu is installed for ahead-of-time compilation and must not be
# probed for devices: the query for a machine's metadata takes seconds where there is none.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
