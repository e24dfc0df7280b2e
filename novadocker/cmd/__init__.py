# SPDX-License-Identifier: Apache-2.0
"""Each module is a command-line program, or the part of one that tests need apart."""

import warnings

# Libraries of Nova import eventlet, which prints a warning. The driver does not use eventlet, so
# the warning would only confuse the user of a program.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
