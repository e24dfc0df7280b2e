# SPDX-License-Identifier: Apache-2.0
import warnings

# libraries of Nova import eventlet, which the driver does not use, and it warns whoever runs us
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
