#!/bin/sh
# No service starts.
exit 101
