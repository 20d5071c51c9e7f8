"""Networks: loaded, given the tree attention, and wrapped by a fine-tuning method."""

import logging

# At import bitsandbytes looks for a kernel that it can do without, and warns that there is none.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
