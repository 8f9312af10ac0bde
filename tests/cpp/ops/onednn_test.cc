// tests/cpp/ops/onednn_test.cc
// With the headers or without, and with no library: nothing happens, and it says why.
// The products are tested in tests/python/test_onednn.py, where the library is found.
// SPDX-License-Identifier: Apache-2.0
#include "ops/onednn.h"

#include <gtest/gtest.h>
#include <stddef.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "base/error.h"

namespace halfbyte {
namespace {

TEST(OnednnTest, WhatCannotBeOpenedIsUnsupportedInOneLine) {
  for (const char* path : {"/nowhere/libdnnl.so.3", "", "/nowhere/\n/libdnnl.so.3"}) {
    try {
      OpenOnednn(path);
      FAIL() << path;
    } catch (const Error& e) {
      EXPECT_EQ(e.cls(), ErrorClass::kUnsupported);
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    }
  }
  EXPECT_FALSE(OnednnState().has_value());
}

TEST(OnednnTest, WithoutALibraryNoProductIsTaken) {
  constexpr size_t kM = 64, kN = 16, kK = 32;
  const std::vector<float> x(kM * kK, 1.0f), w(kN * kK, 1.0f);
  std::vector<float> y(kM * kN, 7.0f);
  const Context context;
  const LinearInput in(context, Mat<const float>(x.data(), kM, kK),
                       ActivationMode::kAuto);
  const WeightView view = {Format::kF32, kN, kK,
                           reinterpret_cast<const uint8_t*>(w.data())};
  for (const bool on : {false, true}) {
    UseOnednn(on);
    EXPECT_FALSE(OnednnLinear(in, view, Mat<float>(y.data(), kM, kN)));
  }
  EXPECT_EQ(y, std::vector<float>(kM * kN, 7.0f));
}

}  // namespace
}  // namespace halfbyte
