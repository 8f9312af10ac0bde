#!/usr/bin/env bash
# The C++ tests of what computes, on 64-bit Arm, from a machine that is none: built with
# a cross compiler, run in an emulator as CPUs with and without the byte dot product.
# Debian and Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/aarch64
# Not io and runtime, whose tests the emulator fails: it takes memory for all of a file
# that is larger, and dies in a fork of a process with threads.
rooms='kernels|ops|kv|text|model'

# The policies that the tests of kernels go through on the CPU in QEMU_CPU.
policies() {
  qemu-aarch64 -L /usr/aarch64-linux-gnu "$build/tests/cpp/kernels_test" \
    --gtest_list_tests --gtest_filter='*Channel*' |
    sed -n 's/.*GetParam() = "\(.*\)"/\1/p' | sort -u
}

# test_cpu <cpu> yes|no: `yes` if that CPU has SDOT.
test_cpu() {
  export QEMU_CPU=$1
  local has_sdot=no names
  names=$(policies)
  grep -q SDOT <<<"$names" && has_sdot=yes
  printf '\n%s: %s\n' "$1" "$(tr '\n' ' ' <<<"$names")"
  [ "$has_sdot" = "$2" ] || { echo "$1: SDOT found: $has_sdot, expected: $2"; exit 1; }
  ctest --preset aarch64 -R "^($rooms)$"
}

cmake --preset aarch64
cmake --build --preset aarch64 --target kernels_test ops_test kv_test text_test \
  model_test
test_cpu cortex-a53 no  # Armv8.0
test_cpu cortex-a76 yes # Armv8.2 with SDOT; neither I8MM nor BF16
test_cpu max yes        # I8MM, BF16 and SVE2 too
