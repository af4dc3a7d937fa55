#!/bin/sh
# compile.sh REPORT COMMAND…: runs the compiler and keeps what it says (ptxas's registers and spills) in REPORT; shows it
# where it is more than that.
report=$1
shift
if ! "$@" >"$report" 2>&1; then
  cat "$report" >&2
  exit 1
fi
grep -i warning "$report" >&2
exit 0
