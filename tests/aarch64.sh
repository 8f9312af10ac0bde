#!/usr/bin/env bash
# The C++ tests on 64-bit Arm, from a machine that is none: cross-built, and run under an
# emulator as CPUs with and without the byte dot product. Debian and Ubuntu:
#   apt-get install g++-aarch64-linux-gnu qemu-user
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/aarch64

# The policies that the tests of kernels go through on the CPU in QEMU_CPU.
policies() {
  qemu-aarch64 -L /usr/aarch64-linux-gnu "$build/tests/cpp/kernels_test" \
    --gtest_list_tests --gtest_filter='*Channel*' | sed -n 's/.*GetParam() = "\(.*\)"/\1/p' | sort -u
}

# test_cpu <cpu> yes|no <tests>: `yes` if that CPU has SDOT.
test_cpu() {
  export QEMU_CPU=$1
  local has_sdot=no names
  names=$(policies)
  grep -q SDOT <<<"$names" && has_sdot=yes
  printf '\n%s: %s\n' "$1" "$(tr '\n' ' ' <<<"$names")"
  [ "$has_sdot" = "$2" ] || { echo "$1: SDOT found: $has_sdot, expected: $2"; exit 1; }
  ctest --preset aarch64 -R "^($3)$"
}

cmake --preset aarch64
cmake --build --preset aarch64
test_cpu cortex-a53 no 'kernels|ops'  # Armv8.0
test_cpu cortex-a76 yes 'kernels|ops' # Armv8.2 with SDOT; neither I8MM nor BF16
test_cpu a64fx no 'kernels|ops'       # SVE, whose dot product is not NEON's
test_cpu max yes '.*'                 # I8MM, BF16 and SVE2 too
