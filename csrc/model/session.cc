// csrc/model/session.cc
// SPDX-License-Identifier: Apache-2.0
#include "model/session.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "model/lookup.h"

namespace halfbyte {

Session::Session(std::shared_ptr<const Model> model,
                 std::shared_ptr<const Model> drafter)
    : model_(std::move(model)), kv_(MakeKv(*model_)) {
  if (drafter) drafter_.emplace(std::move(drafter), *model_);
}

Session::Session(const Session& other)
    : model_(other.model_),
      tokens_(other.tokens_),
      kv_(other.kv_),
      hidden_(other.hidden_),
      reach_(other.reach_) {
  if (other.drafter_) drafter_.emplace(other.drafter_->model(), *model_);
}

void Session::Check(std::span<const int32_t> ids) const {
  const size_t vocab = model_->config().vocab_size;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && static_cast<size_t>(ids[i]) < vocab) continue;
    ErrorInfo info;
    info.kind = "tokens";
    info.code = "TOK_ID_RANGE";
    info.subject = "id at position " + std::to_string(i);
    info.found = std::to_string(ids[i]);
    info.expected = "0 to " + std::to_string(vocab - 1);
    throw Error(ErrorClass::kValue, std::move(info));
  }
  const size_t capacity = model_->options().context;
  if (ids.size() > capacity - tokens_.size()) {
    ErrorInfo info;
    info.kind = "context";
    info.code = "CONTEXT_OVERFLOW";
    info.found = std::to_string(tokens_.size()) + " tokens present and " +
                 std::to_string(ids.size()) + " more";
    info.expected = "at most " + std::to_string(capacity) + " in all";
    const bool more = capacity < model_->config().context_length;
    info.hint = more ? "shorten the prompt or load with a larger context"
                     : "shorten the prompt: the model was made for no more";
    throw Error(ErrorClass::kContextOverflow, std::move(info));
  }
}

void Session::Run(const Context& context, std::span<const int32_t> ids,
                  Mat<float> logits) {
  Check(ids);
  Require(logits.rows <= ids.size(), "logits: more rows than ids");
  model_->CheckFiles();
  ahead_.ids.clear();
  hidden_.clear();
  const size_t skip = ids.size() - logits.rows;  // tokens without logits
  for (size_t begin = 0; begin < ids.size(); begin += Model::kChunk) {
    const size_t end = std::min(begin + Model::kChunk, ids.size());
    const size_t first = std::max(begin, skip);
    const size_t keep = end - std::min(first, end);
    const auto chunk = ids.subspan(begin, end - begin);
    const PassSequence sequence = {SourcesOf(*model_, kv_), tokens_.size()};
    RunChunk(context, *model_, {&sequence, 1}, workspace_, chunk,
             logits.Slice(keep == 0 ? 0 : first - skip, keep));
    tokens_.insert(tokens_.end(), chunk.begin(), chunk.end());
    if (!drafter_ || keep == 0) continue;
    const auto last = HiddenRows(keep).last(model_->config().hidden_size);
    hidden_.assign(last.begin(), last.end());
  }
}

void Session::RunEach(const Context& context, std::span<Session* const> sessions,
                      std::span<const int32_t> ids, Mat<float> logits) {
  Require(ids.size() == sessions.size() && logits.rows == ids.size(),
          "sessions: not as many as ids and rows of logits");
  if (sessions.empty()) return;
  const std::shared_ptr<const Model>& model = sessions[0]->model_;
  for (size_t i = 0; i < sessions.size(); ++i) {
    Require(sessions[i]->model_ == model, "sessions: not of one model");
    sessions[i]->Check(ids.subspan(i, 1));
  }
  model->CheckFiles();
  for (size_t begin = 0; begin < ids.size(); begin += Model::kChunk) {
    const size_t count = std::min(Model::kChunk, ids.size() - begin);
    std::vector<PassSequence> sequences;
    for (Session* s : sessions.subspan(begin, count)) {
      s->ahead_.ids.clear();
      s->hidden_.clear();
      sequences.push_back({SourcesOf(*model, s->kv_), s->tokens_.size()});
    }
    RunChunk(context, *model, sequences, sessions[0]->workspace_,
             ids.subspan(begin, count), logits.Slice(begin, count));
    for (size_t i = begin; i < begin + count; ++i) {
      sessions[i]->tokens_.push_back(ids[i]);
    }
  }
}

// Of the last pass: what its `count` rows of logits were made of.
std::span<const float> Session::HiddenRows(size_t count) {
  const size_t H = model_->config().hidden_size;
  return {workspace_.head.Shape(count, H).data, count * H};
}

void Session::Step(const Context& context, std::span<const int32_t> ids, size_t draft,
                   std::span<float> logits) {
  const Mat<float> last(logits.data(), 1, logits.size());
  if (ids.size() != 1) {
    reach_ = kReach;
    return Run(context, ids, last);
  }
  Check(ids);
  if (Take(ids[0], logits)) return;
  reach_ = Reach(draft);
  const std::vector<int32_t> guesses = Guess(context, ids[0], std::min(reach_, draft));
  if (guesses.empty()) return Run(context, ids, last);
  std::vector<int32_t> all = {ids[0]};
  all.insert(all.end(), guesses.begin(), guesses.end());
  ahead_.ids.clear();  // before their logits go, whatever throws below
  ahead_.logits.resize(all.size() * logits.size());
  Run(context, all, Mat<float>(ahead_.logits.data(), all.size(), logits.size()));
  tokens_.resize(tokens_.size() - guesses.size());
  std::copy_n(ahead_.logits.begin(), logits.size(), logits.begin());
  if (drafter_) {
    const auto rows = HiddenRows(all.size());
    ahead_.hidden.assign(rows.begin(), rows.end());
    const auto first = rows.first(hidden_.size());
    hidden_.assign(first.begin(), first.end());
  }
  drafted_ += guesses.size();
  ahead_.ids = guesses;
  ahead_.taken = 0;
}

// Two tokens more after a pass whose guesses all came, one less after another: where a
// third of all passes are like that it stays, and a guess as likely just about pays.
size_t Session::Reach(size_t draft) const {
  if (ahead_.ids.empty()) return reach_;
  const size_t next =
      ahead_.taken == ahead_.ids.size() ? reach_ + 2 : std::max<size_t>(reach_, 2) - 1;
  return std::min(next, std::max<size_t>(draft, 1));
}

// Up to `most` tokens behind `id`, which is about to run. They begin no page of keys
// and values: a sliding layer would forget one for them, and they may not come.
std::vector<int32_t> Session::Guess(const Context& context, int32_t id, size_t most) {
  const size_t position = tokens_.size();  // of id
  const size_t page = KvLayer::kPageLen - 1 - position % KvLayer::kPageLen;
  most = std::min({most, page, model_->options().context - position - 1});
  if (most == 0) return {};
  if (drafter_) {
    if (hidden_.empty()) return {};
    return drafter_->Draft(context, *model_, kv_, workspace_, hidden_, id, position,
                           most);
  }
  std::vector<int32_t> known = tokens_;
  known.push_back(id);
  return LookUp(known, most);
}

// Takes the next guess into the sequence, if `id` is what was guessed.
bool Session::Take(int32_t id, std::span<float> logits) {
  if (ahead_.taken >= ahead_.ids.size() || ahead_.ids[ahead_.taken] != id) return false;
  tokens_.push_back(id);
  ++ahead_.taken;
  ++accepted_;
  const auto row =
      ahead_.logits.begin() + static_cast<ptrdiff_t>(ahead_.taken * logits.size());
  std::copy_n(row, logits.size(), logits.begin());
  const auto hidden =
      ahead_.hidden.begin() + static_cast<ptrdiff_t>(ahead_.taken * hidden_.size());
  std::copy_n(hidden, hidden_.size(), hidden_.begin());
  return true;
}

size_t Session::Truncate(size_t length) {
  if (length >= tokens_.size()) return tokens_.size();
  ahead_.ids.clear();
  hidden_.clear();
  const auto can = [length](const std::optional<KvLayer>& layer) {
    return !layer || layer->CanResumeAt(length);
  };
  if (!std::all_of(kv_.begin(), kv_.end(), can)) length = 0;
  tokens_.resize(length);
  if (length == 0) {
    for (auto& layer : kv_) {
      if (layer) layer->Reset();
    }
  }
  return length;
}

uint64_t Session::kv_bytes() const {
  uint64_t bytes = 0;
  for (const auto& layer : kv_) {
    if (layer) bytes += layer->allocated_bytes();
  }
  return bytes;
}

}  // namespace halfbyte
