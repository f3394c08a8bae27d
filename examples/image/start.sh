#!/bin/sh
# Entry point of the image: hands the kernels that were compiled at build to Numba, which wants to be able to write beside them.
set -eu
if [ -d "${QUERYWARDEN_KERNELS:-/app/numba}" ] && [ ! -d "$NUMBA_CACHE_DIR" ]; then
    # whole or not at all; without them the kernels are compiled anew, which takes a worker up to a minute
    if cp -R "${QUERYWARDEN_KERNELS:-/app/numba}" "$NUMBA_CACHE_DIR.$$" 2>/dev/null; then
        chmod -R u+w "$NUMBA_CACHE_DIR.$$"
        mv "$NUMBA_CACHE_DIR.$$" "$NUMBA_CACHE_DIR"
    fi
fi
unset QUERYWARDEN_KERNELS
exec querywarden "$@"
