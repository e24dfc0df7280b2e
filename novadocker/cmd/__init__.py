# SPDX-License-Identifier: Apache-2.0
"""The programs, each a module with a function ``main``."""

import warnings

# Libraries of Nova import eventlet, which prints a warning. The driver does not use eventlet, so
# the warning would only confuse the user of a program.
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
