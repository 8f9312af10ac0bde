// csrc/model/table_rows.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/table_rows.h"

#include <stddef.h>

#include "model/model.h"

namespace halfbyte {
namespace {

// Copies `bytes` of each row, which lie one after the other from `data` on. Neighbours
// are read together: those of one token's layers are.
void CopyEach(const Model& model, const uint8_t* data, size_t bytes,
              std::span<const int32_t> ids, uint8_t* to) {
  for (size_t i = 0, count; i < ids.size(); i += count) {
    count = 1;
    while (i + count < ids.size() && ids[i + count] - ids[i + count - 1] == 1) ++count;
    const uint8_t* from = data + static_cast<size_t>(ids[i]) * bytes;
    model.Read({from, count * bytes}, to + i * bytes);
  }
}

}  // namespace

WeightView TableRows::Copy(const Model& model, const WeightView& table,
                           std::span<const int32_t> ids) {
  WeightView copy = table;
  copy.N = ids.size();
  copy.panels = nullptr;
  const size_t row_bytes = table.stored_row_bytes();
  rows_.resize(ids.size() * row_bytes);
  CopyEach(model, table.data, row_bytes, ids, rows_.data());
  copy.data = rows_.data();
  if (table.group_scale != nullptr) {
    const size_t bytes = table.K / table.group_len * 2;
    group_scales_.resize(ids.size() * bytes);
    CopyEach(model, table.group_scale, bytes, ids, group_scales_.data());
    copy.group_scale = group_scales_.data();
  }
  if (table.row_scale != nullptr) {
    row_scales_.resize(ids.size());
    CopyEach(model, reinterpret_cast<const uint8_t*>(table.row_scale), sizeof(float),
             ids, reinterpret_cast<uint8_t*>(row_scales_.data()));
    copy.row_scale = row_scales_.data();
  }
  return copy;
}

}  // namespace halfbyte
