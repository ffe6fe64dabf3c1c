"""Python imports this when it starts, in processes of tests whose clock differs from that of the machine.

libfaketime 0.9.10 cannot do it: with it, `time.sleep` of Python 3.11 fails.
"""

import os
from datetime import UTC, datetime, timedelta

import time_machine

offset = timedelta(seconds=float(os.environ["CLOCK_OFFSET_S"]))
time_machine.travel(datetime.now(UTC) + offset, tick=True).start()
