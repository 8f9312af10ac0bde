// csrc/model/session.h
// One sequence of tokens running through a model: its keys and values, and the pass.
// SPDX-License-Identifier: Apache-2.0

#ifndef HALFBYTE_MODEL_SESSION_H_
#define HALFBYTE_MODEL_SESSION_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/view.h"
#include "kv/layer.h"
#include "model/drafter.h"
#include "model/forward.h"
#include "model/model.h"
#include "runtime/thread_pool.h"

namespace halfbyte {

// Used by one thread at a time.
class Session {
 public:
  // `drafter`: what guesses; null: LookUp. Throws as Drafter does.
  explicit Session(std::shared_ptr<const Model> model,
                   std::shared_ptr<const Model> drafter = nullptr);
  Session(const Session& other);  // the same tokens; keys and values are copied

  const Model& model() const { return *model_; }
  // Tokens whose keys and values are held.
  const std::vector<int32_t>& tokens() const { return tokens_; }

  // Throws TOK_ID_RANGE or CONTEXT_OVERFLOW if `ids` cannot be appended.
  void Check(std::span<const int32_t> ids) const;

  // Appends `ids` to the sequence; the last logits.rows of them get logits. Throws as
  // Check does, before anything is computed. If the context's poll throws, the sequence
  // ends after the last chunk that was finished.
  void Run(const Context& context, std::span<const int32_t> ids, Mat<float> logits);

  // Appends ids[i] to sessions[i], all of one model and no two the same, in one pass
  // over the weights; row i of the logits follows it: the bits of Run. Throws as Run
  // does; sequences whose pass was not finished are as they were.
  static void RunEach(const Context& context, std::span<Session* const> sessions,
                      std::span<const int32_t> ids, Mat<float> logits);

  // Appends `ids` and writes the logits that follow the last of them: the bits of Run.
  // A single id runs together with up to `draft` tokens that are guessed to follow it,
  // by the drafter if there is one, or by LookUp: more of them after a pass whose
  // guesses all came, fewer after another. They are no part of the sequence, but where
  // the next Step brings what was guessed, its logits are there already: one pass over
  // the weights for several tokens.
  void Step(const Context& context, std::span<const int32_t> ids, size_t draft,
            std::span<float> logits);

  // What may come behind `id`, which follows the sequence: at most `most` tokens.
  std::vector<int32_t> Guess(const Context& context, int32_t id, size_t most);

  // Of all Steps so far: tokens that were guessed, and those of them that came.
  size_t drafted() const { return drafted_; }
  size_t accepted() const { return accepted_; }

  // Cuts the sequence to at most `length` tokens. Sliding layers remember only so much:
  // where too little is left to go on from there, the sequence becomes empty. Returns
  // what its length is now.
  size_t Truncate(size_t length);

  uint64_t kv_bytes() const;  // allocated

 private:
  std::shared_ptr<const Model> model_;
  std::vector<int32_t> tokens_;
  KvLayers kv_;
  Workspace workspace_;

  // Guesses that ran behind tokens_ and have not come yet. Keys and values know them;
  // whatever runs next writes over those.
  struct Ahead {
    std::vector<int32_t> ids;
    std::vector<float> logits;  // row 0 follows what ran before ids[0]
    std::vector<float> hidden;  // what the logits were made of, for a drafter
    size_t taken = 0;           // of ids, which are in tokens_
  };
  size_t Reach(size_t draft) const;
  bool Take(int32_t id, std::span<float> logits);
  std::span<const float> HiddenRows(size_t count);

  Ahead ahead_;
  std::optional<Drafter> drafter_;
  // The row behind the final norm that the last logits are of; empty if none is known.
  std::vector<float> hidden_;
  static constexpr size_t kReach = 3;  // tokens that an answer's first guess has
  size_t reach_ = kReach;              // the next one, if so many are asked for
  size_t drafted_ = 0, accepted_ = 0;
};

}  // namespace halfbyte
#endif  // HALFBYTE_MODEL_SESSION_H_
