// csrc/model/table_rows.h
// Rows of the embeddings: a token needs a few of them, and the rest stays in the file.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_TABLE_ROWS_H_
#define HALFBYTE_MODEL_TABLE_ROWS_H_

#include <stdint.h>

#include <span>
#include <vector>

#include "ops/linear.h"

namespace halfbyte {

class Model;

// Rows copied out of a table, and what scales them.
class TableRows {
 public:
  // Rows ids[0], ids[1], … of `table`, a matrix of `model`. Ids are trusted. The view
  // is good until the next call. Throws Error as MappedFile::Read does.
  WeightView Copy(const Model& model, const WeightView& table,
                  std::span<const int32_t> ids);

  // Lets go of what panels hold as well, and keeps the scales of whole rows.
  void DropPacked() { rows_ = group_scales_ = {}; }

 private:
  std::vector<uint8_t> rows_, group_scales_;
  std::vector<float> row_scales_;
};

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_TABLE_ROWS_H_
